"""One input, as the loop that answers it sees it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sglang.srt.blendserve.answering.pause import Pause
from sglang.srt.blendserve.batch_file.types import BatchLine

T = TypeVar("T")


class OffLoop(Protocol):
    """Runs work that may block off the event loop, and returns what it returns."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One input, as the loop sees it.

    Attributes:
        name: the job's name, by which the scheduler knows it; result ids come from it.
        label: what the log calls it.
        left: lines that have no result yet.
        rid: returns the request id of the next line to be sent.
        seconds_left: returns the time until the job has to be done, in seconds.
        priority: returns its priority among the engine's jobs.
        pause: whether it sends lines now.
        user: whose it is, None: nobody's in particular.
        share: of the engine's slots that this user has, beside others.
    """

    name: str
    label: str
    left: int
    rid: Callable[[BatchLine], str]
    seconds_left: Callable[[], float] = lambda: math.inf
    priority: Callable[[], int] = lambda: 0
    pause: Pause = field(default_factory=Pause)
    user: str | None = None
    share: float = 1.0
