"""Result lines: the form in which OpenAI's batch output and error files hold an answer.

    {"id": "batch_req_...", "custom_id": "a", "response": {"status_code": 200,
     "request_id": "...", "body": {...}}, "error": null}

A request that its endpoint refused has the endpoint's status (4xx or 5xx) and, in ``body``,
``{"error": {...}}``; its ``error`` is null. A line that never reached an endpoint (not valid,
expired, cancelled) has ``response`` null and ``error`` set. Both kinds belong in the error file.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict

from sglang.srt.blendserve.batch_file.types import LineError


class Response(BaseModel):
    """An endpoint's answer: HTTP status, the request's id in the engine, and the body."""

    model_config = ConfigDict(frozen=True)

    status_code: int
    request_id: str
    body: dict[str, Any]


class RequestError(BaseModel):
    """Why a line got no answer from an endpoint.

    ``line`` (its number in the input, from 1) and ``param`` go beyond OpenAI's ``code`` and
    ``message``: without them a line that has no usable custom_id could not be found again.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class OutputLine(BaseModel):
    """One line of an output or error file; exactly one of ``response`` and ``error`` is set."""

    model_config = ConfigDict(frozen=True)

    id: str
    custom_id: str | None
    response: Response | None = None
    error: RequestError | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the line belongs in the output file; otherwise in the error file."""
        return self.response is not None and self.response.status_code < 400

    def to_json(self) -> bytes:
        """Return the line as one line of JSON, with its newline."""
        # By hand, because pydantic would walk through the whole body once more.
        response, error = self.response, self.error
        line = {
            "id": self.id,
            "custom_id": self.custom_id,
            "response": None if response is None else dict(response),
            "error": None if error is None else dict(error),
        }
        return _escape_line_ends(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


_LINE_ENDS = ("\u2028", "\u2029", "\x85")
"""Characters that end a line for `str.splitlines` and many clients, but not in JSON Lines."""

_ESCAPED = [(end.encode(), b"\\u%04x" % ord(end)) for end in _LINE_ENDS]


def _escape_line_ends(data: bytes) -> bytes:
    """Return a JSON text, in UTF-8, with every line end inside its strings escaped."""
    for end, escaped in _ESCAPED:
        data = data.replace(end, escaped)
    return data


def output_id(job: str, line: int) -> str:
    """Return the ``id`` of the result of input line ``line`` (from 1) in ``job``.

    The same line of the same job always gets the same id, so that an answer computed again after
    a crash is the same line. The job's name is unguessable, and so is the id.
    """
    digest = blake2b(f"{job}-{line}".encode(), digest_size=12).hexdigest()
    return f"batch_req_{digest}"


def answer(job: str, line: int, custom_id: str, response: Response) -> OutputLine:
    """Return the result line of a request that its endpoint answered, with whatever status."""
    return OutputLine(id=output_id(job, line), custom_id=custom_id, response=response)


def refusal(job: str, error: LineError) -> OutputLine:
    """Return the result line of an input line that was not valid, expired or was cancelled."""
    return OutputLine(
        id=output_id(job, error.line or 0),
        custom_id=error.custom_id,
        error=RequestError(
            code=error.code, message=error.message, param=error.param, line=error.line
        ),
    )
