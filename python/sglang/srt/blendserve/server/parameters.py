"""Parameters that the HTTP API takes. FastAPI checks them, but for the form of an upload."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sglang.srt.blendserve.batch_file.types import Endpoint

SHORTEST_KEPT, LONGEST_KEPT = 3600, 30 * 86400
"""Seconds that a file with an expiry is kept: one hour to 30 days."""

SHORTEST_WINDOW, LONGEST_WINDOW = 3600, 7 * 86400
"""Seconds that a batch may take: ``1h`` to ``7d``."""

_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])", re.ASCII)
_UNIT_SECONDS = {"h": 3600, "d": 86400}
_SHOWN_ENDPOINTS = ", ".join(f"'{endpoint}'" for endpoint in Endpoint)


def window_seconds(text: str) -> int:
    """Return the length in seconds of a completion window such as ``24h`` or ``7d``.

    Raises:
        ValueError: it is not a whole number of hours or days from 1h to 7d.
    """
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
    if not SHORTEST_WINDOW <= seconds <= LONGEST_WINDOW:
        raise ValueError(
            "completion_window must be a whole number of hours or days from '1h' to '7d', such "
            "as '24h'."
        )
    return seconds


def _window(text: str) -> str:
    window_seconds(text)
    return text


def _endpoint(text: str) -> str:
    if text not in tuple(Endpoint):
        raise ValueError(f"supported are {_SHOWN_ENDPOINTS}.")
    return text


Priority = Annotated[int, Field(ge=-100, le=100)]
"""The higher, the sooner the engine takes a batch's requests; see `answering.slots`."""


class ExpiresAfter(BaseModel):
    """How long a file is kept: seconds after it was created, one hour to 30 days."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST_KEPT, le=LONGEST_KEPT)]


class CreateBatch(BaseModel):
    """The body of ``POST /v1/batches``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str
    endpoint: Annotated[str, AfterValidator(_endpoint)]
    completion_window: Annotated[str, AfterValidator(_window)]
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None
    priority: Priority = 0
    webhook_url: str | None = None


class ReadResults(BaseModel):
    """The query of ``GET /v1/batches/{id}/results``, which OpenAI does not have."""

    after: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000


class ChangeBatch(BaseModel):
    """The body of ``POST /v1/batches/{id}``, which OpenAI does not have: what is to be another."""

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: Priority | None = None
    paused: bool | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> ChangeBatch:
        if self.priority is None and self.paused is None:
            raise ValueError("give priority (an integer) or paused (true or false).")
        return self


class CreateFile(BaseModel):
    """The text fields of ``POST /v1/files``; a form writes field ``b`` of ``a`` as ``a[b]``."""

    model_config = ConfigDict(extra="forbid")

    purpose: Literal["batch"]
    expires_after: ExpiresAfter | None = None

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, fields: dict[str, str]) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for key, value in fields.items():
            outer, bracket, inner = key.partition("[")
            if not bracket or not inner.endswith("]"):
                nested[key] = value
            elif isinstance(group := nested.setdefault(outer, {}), dict):
                group[inner[:-1]] = value
        return nested


_After = Annotated[str | None, AfterValidator(lambda text: text or None)]
"""Behind which entry a list begins; an empty one is none, as clients write it."""


class ListBatches(BaseModel):
    """The query of ``GET /v1/batches``; what it does not know it ignores. A limit of 0 is an empty
    page, as OpenAI has it."""

    after: _After = None
    limit: Annotated[int, Field(ge=0, le=100)] = 20


class ListFiles(BaseModel):
    """The query of ``GET /v1/files``; what it does not know it ignores."""

    after: _After = None
    limit: Annotated[int, Field(ge=0, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None
