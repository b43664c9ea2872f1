"""Answers as rows of a table, with columns and types that do not depend on what is in them.

A tool that reads JSON lines guesses types from the first of them, and an ``error`` that is null in
all of these has none. Here every column is there, with its type, in every file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

ANSWER_COLUMNS = (
    ("id", "string"),
    ("custom_id", "string"),
    ("line", "int64"),
    ("status_code", "int32"),
    ("text", "string"),
    ("reasoning", "string"),
    ("finish_reason", "string"),
    ("prompt_tokens", "int64"),
    ("completion_tokens", "int64"),
    ("cached_tokens", "int64"),
    ("error_code", "string"),
    ("error_message", "string"),
    ("error_param", "string"),
    ("request_id", "string"),
    ("response", "string"),
)
"""Name and type of each.

- ``text``, ``finish_reason``: of the first choice, of a response all its text; embeddings, scores
  and rerankings have none
- ``reasoning``: what the model has thought before, where the engine has a ``--reasoning-parser``
- ``line``: of the input, only where the line was refused
- ``error_code``, ``error_message``, ``error_param``: why there is no answer, of a line that was
  refused and of one that its endpoint refused; ``status_code`` tells them apart
- ``response``: the endpoint's whole answer, as JSON
"""


def rows_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield a row for each line of an output or error file.

    Raises:
        ValueError: a line is no result.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _row(orjson.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"line {number} is no result line ({error!r})") from error


def lines_of(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Yield the line of an output or error file that each row was made of.

    Raises:
        ValueError: a row has no such line.
    """
    for number, row in enumerate(rows, start=1):
        response = error = None
        if row["response"] is None:
            error = {name: row.get(f"error_{name}") for name in ("code", "message", "param")}
            error["line"] = row.get("line")
        else:
            try:
                body = orjson.loads(row["response"])
            except ValueError as problem:
                raise ValueError(f"row {number}: response is no JSON ({problem})") from problem
            response = {
                "status_code": row["status_code"],
                "request_id": row.get("request_id"),
                "body": body,
            }
        line = {
            "id": row.get("id"),
            "custom_id": row.get("custom_id"),
            "response": response,
            "error": error,
        }
        yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _row(result: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": result["id"], "custom_id": result["custom_id"]}
    response, error = result["response"], result["error"]
    if response is not None:
        body = response["body"]
        row |= {
            "status_code": response["status_code"],
            "request_id": response["request_id"],
            "response": orjson.dumps(body).decode(),
            **(_answer(body) if isinstance(body, dict) else {}),
        }
        error = body.get("error") if isinstance(body, dict) else None
        if error is None and response["status_code"] >= 400:
            error = body
    if isinstance(error, dict):
        row |= {
            "error_code": _text(error.get("code") or error.get("type")),
            "error_message": _text(error.get("message")),
            "error_param": _text(error.get("param")),
            "line": error.get("line") if response is None else None,
        }
    elif error is not None:
        row["error_message"] = _text(error)
    return row


def _answer(body: dict[str, Any]) -> dict[str, Any]:
    usage = body.get("usage") or {}
    if body.get("object") == "response":
        return _response(body, usage)
    found = {
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    }
    choices = body.get("choices")
    if choices:
        first = choices[0]
        message = first.get("message") or {}
        found["text"] = message.get("content") if "text" not in first else first["text"]
        found["reasoning"] = message.get("reasoning_content")
        found["finish_reason"] = first.get("finish_reason")
    return found


def _response(body: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
    """What an answer of ``/v1/responses`` has; its text is what OpenAI's client joins, too."""
    texts, thoughts = (
        [
            part["text"]
            for item in body.get("output") or ()
            if item.get("type") == kind
            for part in item.get("content") or ()
            if part.get("type") == of
        ]
        for kind, of in (("message", "output_text"), ("reasoning", "reasoning_text"))
    )
    stopped = (body.get("incomplete_details") or {}).get("reason")
    return {
        # SGLang 0.5.17 has the names of chats.
        "prompt_tokens": usage.get("input_tokens", usage.get("prompt_tokens")),
        "completion_tokens": usage.get("output_tokens", usage.get("completion_tokens")),
        "cached_tokens": (usage.get("input_tokens_details") or {}).get("cached_tokens"),
        "text": "".join(texts) if texts else None,
        "reasoning": "".join(thoughts) if thoughts else None,
        "finish_reason": stopped or ("stop" if body.get("status") == "completed" else None),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
