"""Types of the OpenAI batch file format: one request line in, one result or one error out.

A batch file is JSONL. Each line that is not blank is one request:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}

and becomes either a `BatchLine` or a `LineError`, never both and never neither. What is wrong
with the file as a whole (empty, too large, unreadable) is a `BatchFileError`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict


class Endpoint(StrEnum):
    """The endpoints a batch line may name in ``url``."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    SCORE = "/v1/score"
    RERANK = "/v1/rerank"


class ErrorCode(StrEnum):
    """Every code that a line or a file can be refused with.

    Those that OpenAI documents have OpenAI's names: invalid_json_line, duplicate_custom_id,
    url_mismatch, model_mismatch, empty_file, too_many_tasks, missing_required_parameter,
    invalid_type, invalid_value, batch_expired, batch_cancelled.
    """

    # one line
    INVALID_JSON_LINE = "invalid_json_line"
    LINE_TOO_LONG = "line_too_long"
    MISSING_REQUIRED_PARAMETER = "missing_required_parameter"
    INVALID_TYPE = "invalid_type"
    INVALID_VALUE = "invalid_value"
    DUPLICATE_CUSTOM_ID = "duplicate_custom_id"
    UNSUPPORTED_METHOD = "unsupported_method"
    UNSUPPORTED_URL = "unsupported_url"
    URL_MISMATCH = "url_mismatch"
    MODEL_MISMATCH = "model_mismatch"
    STREAMING_UNSUPPORTED = "streaming_unsupported"
    # the whole file
    EMPTY_FILE = "empty_file"
    TOO_MANY_TASKS = "too_many_tasks"
    FILE_TOO_LARGE = "file_too_large"
    UNREADABLE_FILE = "unreadable_file"
    INPUT_CHANGED = "input_changed"
    QUOTA_EXCEEDED = "quota_exceeded"
    # a valid line that got no HTTP answer
    BATCH_EXPIRED = "batch_expired"
    BATCH_CANCELLED = "batch_cancelled"
    ENGINE_DIED = "engine_died"


_CAPS = {
    Endpoint.CHAT: ("max_completion_tokens", "max_tokens"),
    Endpoint.COMPLETIONS: ("max_tokens",),
    Endpoint.RESPONSES: ("max_output_tokens",),
}
"""Fields of a body that say how long an answer may be; the first that is not 0 or null counts."""

_USUAL_CAPS = {Endpoint.COMPLETIONS: 16}
"""What counts where there is none."""

_MOST_OUTPUT = 1 << 20
"""Tokens of an answer that are counted at most: no model of today writes as many."""


class BatchLine(BaseModel):
    """One valid request line.

    Attributes:
        line: its number in the file, from 1, blank lines counted (as editors do).
        custom_id: not empty; no earlier line of the file names the same.
        method: always ``POST``.
        url: one of `Endpoint`.
        body: the request body, as the endpoint takes it. Its envelope is checked (required
            field present, no streaming, ``n`` in range); the endpoint itself checks the rest.
    """

    model_config = ConfigDict(frozen=True)

    line: int
    custom_id: str
    method: str
    url: Endpoint
    body: dict[str, Any]

    @property
    def output_cap(self) -> int | None:
        """Most output tokens of all its answers together; None where the body has no cap."""
        given = (self.body.get(field) for field in _CAPS.get(self.url, ()))
        cap = next((value for value in given if value), _USUAL_CAPS.get(self.url))
        if not _is_number(cap):
            return None
        answers = self.body.get("n") or 1
        if self.url is Endpoint.COMPLETIONS and isinstance(self.body.get("prompt"), list):
            prompts = self.body["prompt"]
            answers *= len(prompts) if prompts and not _is_number(prompts[0]) else 1
        return int(min(max(cap, 0), _MOST_OUTPUT) * answers) if _is_number(answers) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value
    )  # no nan


class LineError(BaseModel):
    """Why a line, or with ``line`` None the whole file, is refused.

    Attributes:
        code: one of `ErrorCode`.
        message: what is wrong and how to put it right.
        param: the field at fault (``custom_id``, ``body.messages``), None if no single one is.
        line: the line's number in the file, from 1.
        custom_id: the line's custom_id where it names a usable one. With `duplicate_custom_id`
            it is the repeated one, so ``line`` and not ``custom_id`` tells error lines apart.
    """

    model_config = ConfigDict(frozen=True)

    code: ErrorCode
    message: str
    param: str | None = None
    line: int | None = None
    custom_id: str | None = None

    def to_batch_error(self) -> dict[str, Any]:
        """Return the form that OpenAI's batch object lists in ``errors.data``."""
        return self.model_dump(mode="json", exclude={"custom_id"})


class BatchFileError(ValueError):
    """The file as a whole cannot be taken; ``error`` says why, in the form of a `LineError`."""

    def __init__(self, error: LineError) -> None:
        super().__init__(error.message)
        self.error = error
