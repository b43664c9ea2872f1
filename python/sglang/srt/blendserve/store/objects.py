"""The objects that the HTTP API returns, with every field that OpenAI documents, and their ids.

An id is unguessable. It becomes a file name inside the batch directory, so whatever a client sends
as one is matched against the full pattern before it touches the store.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

_FILE_ID = re.compile(r"file-[0-9a-f]{32}", re.ASCII)
_BATCH_ID = re.compile(r"batch_[0-9a-f]{32}", re.ASCII)
BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]

Outcome = Literal["completed", "failed", "expired", "cancelled"]
"""The states a batch ends in."""

TERMINAL: frozenset[BatchStatus] = frozenset(("completed", "failed", "expired", "cancelled"))


class FileObject(BaseModel):
    """A stored file. Times are Unix seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
    owner: str | None = Field(default=None, exclude=True)
    """The user whose it is, None: the operator's. The API does not show it."""


class DeletedFile(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class RequestCounts(BaseModel):
    """Requests of a batch; in a terminal state ``completed + failed == total``."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    """The part of a batch's input tokens that was found in the prefix cache."""

    cached_tokens: int


class OutputTokensDetails(BaseModel):
    """The part of a batch's output tokens that was spent on reasoning."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens of all requests of a batch answered so far."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchErrors(BaseModel):
    """What is wrong with the input or, while a batch waits, with the store."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]


class Forecast(BaseModel):
    """What is expected of an open batch.

    ``starts_at``: when its first requests go in, or went in, and ``ends_at``: when the last is
    answered, Unix seconds; ``in_time``: whether that is in its window; ``gpu_seconds``: of all its
    requests, None: not known.
    """

    starts_at: int
    ends_at: int
    in_time: bool
    gpu_seconds: float | None = None


class BatchObject(BaseModel):
    """A batch. Times are Unix seconds. ``priority``, ``paused_at``, ``forecast``, ``gpu_seconds``
    (used so far) and ``owner`` are not OpenAI's."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: Usage
    metadata: dict[str, str] | None = None
    priority: int = 0
    paused_at: int | None = None
    forecast: Forecast | None = None
    gpu_seconds: float = 0.0
    owner: str | None = None


Item = TypeVar("Item", FileObject, BatchObject)


class ListPage(BaseModel, Generic[Item]):
    """A page of a list; ask for the next with ``after=last_id`` while ``has_more``."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: list[Item], has_more: bool) -> ListPage[Item]:
        """Return ``items`` as a page."""
        first, last = (items[0].id, items[-1].id) if items else (None, None)
        return cls(data=items, first_id=first, last_id=last, has_more=has_more)


def new_file_id() -> str:
    """Return ``file-`` and 128 random bits in hexadecimal."""
    return f"file-{secrets.token_hex(16)}"


def new_batch_id() -> str:
    """Return ``batch_`` and 128 random bits in hexadecimal."""
    return f"batch_{secrets.token_hex(16)}"


def is_file_id(text: str) -> bool:
    """Whether ``text`` has the form of a file id, and so is safe as a file name."""
    return _FILE_ID.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    """Whether ``text`` has the form of a batch id, and so is safe as a folder name."""
    return _BATCH_ID.fullmatch(text) is not None


def job_of(batch_id: str) -> str:
    """Return the name of the offline job (`sglang.srt.blendserve.job_ids`) that runs a batch."""
    return batch_id.removeprefix("batch_")
