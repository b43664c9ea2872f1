"""What the planner's process and those who ask it send each other: JSON and bytes, no pickles."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

_SIZE_BYTES = 4


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    """Return a message."""
    packed = orjson.dumps(header)
    return len(packed).to_bytes(_SIZE_BYTES, "little") + packed + body


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Return what `pack` was given."""
    size = int.from_bytes(message[:_SIZE_BYTES], "little") + _SIZE_BYTES
    return orjson.loads(message[_SIZE_BYTES:size]), message[size:]


class News(NamedTuple):
    """What has happened to a job since the planner was last asked.

    Attributes:
        started: lines handed over without the plan.
        ended: lines that have their result, with the output tokens of their answers; None where
            there is nothing to learn from.
        whole: whether the job's request store grows no more.
    """

    started: list[int]
    ended: list[tuple[int, int | None]]
    whole: bool
