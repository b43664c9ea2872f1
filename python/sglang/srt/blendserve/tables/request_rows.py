"""Requests as rows of a table: each row becomes one line of a batch file.

Either a column ``body`` has the whole request, as JSON or as a struct, or ``messages``, ``prompt``
or ``input`` has what is asked and other columns its parameters. A value that is missing is left
out. Whatever cannot be a request becomes a line all the same, which is then refused as a bad line
of a batch file is: with its number, which is the row's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import orjson

from sglang.srt.blendserve.batch_file.types import Endpoint

_ASKED = {
    "messages": Endpoint.CHAT,
    "prompt": Endpoint.COMPLETIONS,
    "input": Endpoint.EMBEDDINGS,
}
"""Columns that say what is asked, and the endpoint that answers it."""

_ENVELOPE = ("custom_id", "method", "url", "body")

_LENGTH = ("max_tokens", "max_completion_tokens", "min_tokens", "ignore_eos")
_STOP = ("stop", "stop_token_ids", "stop_regex", "no_stop_trim", "skip_special_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "n", "best_of", "seed", "logit_bias")
_PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty")
_SCORES = ("logprobs", "top_logprobs", "echo", "suffix")
_GRAMMAR = ("response_format", "json_schema", "regex", "ebnf", "structural_tag")
_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
_CHAT = ("chat_template_kwargs", "continue_final_message", "reasoning_effort", "separate_reasoning")
_EMBEDDING = ("dimensions", "encoding_format")
_OTHERS = ("model", "lora_path", "extra_key", "cache_salt", "user", "priority")
_GROUPS = (_LENGTH, _STOP, _SAMPLING, _PENALTIES, _SCORES, _GRAMMAR, _TOOLS, _CHAT, _EMBEDDING)

PARAMETERS = frozenset(chain(*_GROUPS, _OTHERS))
"""Columns that are taken for parameters of a request."""

_STRUCTURES = ("logit_bias", "response_format", "structural_tag", "tools", "tool_choice")
_OBJECTS = frozenset(("messages", "stop", "stop_token_ids", *_STRUCTURES, "chat_template_kwargs"))
"""Of these, the ones whose text may be JSON."""

REQUEST_COLUMNS = (("custom_id", "string"), ("url", "string"), ("body", "string"))
"""How a batch file is written as a table; ``body`` is JSON."""


def unused(columns: Sequence[str]) -> list[str]:
    """Return the columns that no request is made of."""
    if "body" in columns:
        return [name for name in columns if name not in _ENVELOPE]
    known = {*_ENVELOPE, *_ASKED, *PARAMETERS}
    return [name for name in columns if name not in known]


def left_out(path: str, columns: Sequence[str]) -> str:
    """Return the sentence that says so."""
    return f"{path}: columns that are no parameters are left out: {', '.join(columns)}"


def lines_of(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Yield a line of a batch file for each row, with its newline. A row without a column
    ``custom_id`` is called ``row-`` and its number, from 1."""
    for number, row in enumerate(rows, start=1):
        yield _line(row, number)


def rows_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield a row with `REQUEST_COLUMNS` for each line of a batch file that is not blank.

    Raises:
        ValueError: a line is no JSON object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = orjson.loads(line)
            custom_id, url, body = (found.get(name) for name, _ in REQUEST_COLUMNS)
            text = None if body is None else orjson.dumps(body).decode()
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"line {number} is no JSON object ({error}); mend it") from error
        for name, value in (("custom_id", custom_id), ("url", url)):
            if not isinstance(value, str | None):
                raise ValueError(f"line {number}: {name} is no text but {value!r}; mend it")
        yield {"custom_id": custom_id, "url": url, "body": text}


def _line(row: dict[str, Any], number: int) -> bytes:
    body = _body(row)
    url = row.get("url") or _endpoint(body) or _endpoint(row)
    custom_id = row.get("custom_id", f"row-{number}")
    if isinstance(custom_id, int):
        custom_id = str(custom_id)
    line = {"custom_id": custom_id, "method": row.get("method") or "POST", "url": url, "body": body}
    if custom_id is None or url is None or body is None:
        line = {name: value for name, value in line.items() if value is not None}
    try:
        return orjson.dumps(line, default=_other, option=orjson.OPT_APPEND_NEWLINE)
    except (TypeError, ValueError) as error:  # refused with this for a body
        line = {"method": "POST", "url": Endpoint.CHAT.value, "body": f"no JSON: {error}"}
        if isinstance(custom_id, str):
            line["custom_id"] = custom_id
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _other(value: Any) -> str:
    """A value that is none of JSON's: bytes are text, anything else is refused."""
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"a value is of the type {type(value).__name__}")


def _body(row: dict[str, Any]) -> Any:
    if "body" in row:
        return _parsed(row["body"]) if isinstance(row["body"], str) else _filled(row["body"])
    body = {}
    for name in _taken(tuple(row)):
        value = row[name]
        if isinstance(value, str):
            body[name] = _parsed(value) if name in _OBJECTS else value
        elif value is not None:
            body[name] = _filled(value) if isinstance(value, dict | list) else value
    return body


@lru_cache(maxsize=16)
def _taken(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Of the columns those that a body is made of, in the order that it has them."""
    return tuple(name for name in (*_ASKED, *sorted(PARAMETERS)) if name in columns)


def _endpoint(body: Any) -> str | None:
    if not isinstance(body, dict):
        return Endpoint.CHAT.value  # so that what is said of the row is that its body is none
    return next((endpoint.value for name, endpoint in _ASKED.items() if name in body), None)


def _parsed(text: str) -> Any:
    """The value that a text is in JSON; a text that is none is itself."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return orjson.loads(text)
    except ValueError:
        return text


def _filled(value: Any) -> Any:
    """``value`` without the fields that are missing: a column's structs have all of its fields."""
    if isinstance(value, dict):
        return {name: _filled(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_filled(one) for one in value]
    return value
