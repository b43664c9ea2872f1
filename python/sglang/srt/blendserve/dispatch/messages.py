"""What the planner's process and those who ask it send each other: JSON and bytes, no pickles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from sglang.srt.blendserve.dispatch.dispatcher import JobWork

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
        aside: lines that were handed over by plan, and are in no engine for now.
    """

    started: list[int]
    ended: list[tuple[int, int | None]]
    whole: bool
    aside: Sequence[int] = ()


class Place(NamedTuple):
    """A line that is handed over, and where in the input it stands.

    Attributes:
        line: its number, from 1.
        offset, length: bytes of the input.
        row: the first of its rows in the request store.
    """

    line: int
    offset: int
    length: int
    row: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What the planner hands over of a job, and where it stands.

    Attributes:
        places: the lines, in the order in which they are to go in.
        ended: whether there are no others and will be none.
        planned: requests that are or were in a plan.
        prepared: rows of the store that it has taken up.
        work: predicted, of the job.
        engine: whose window the lines are for.
    """

    places: list[Place]
    ended: bool
    planned: int
    prepared: int
    work: JobWork
    engine: int = 0

    def as_header(self) -> dict[str, Any]:
        """Return it for `pack`."""
        work = self.work
        return {
            "places": [[*place] for place in self.places],
            "ended": self.ended,
            "planned": self.planned,
            "prepared": self.prepared,
            "work": [work.compute, work.memory, work.running, work.done],
            "engine": self.engine,
        }

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> Taken:
        """Return what `as_header` was called on."""
        return cls(
            [Place(*place) for place in header["places"]],
            header["ended"],
            header["planned"],
            header["prepared"],
            JobWork(*header["work"]),
            header["engine"],
        )
