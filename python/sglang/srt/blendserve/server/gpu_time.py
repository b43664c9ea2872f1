"""The time that GPUs work for batches: divided among them, and predicted for what is left.

SGLang tells nobody which part of a step was whose. So the time in which the engines have lines of
batches is divided, twice a second: all of it to the one batch that has lines in them, else in
proportion to the work of what was answered in the last minute. What online requests take of it is
not taken off. On a machine without a GPU it is the time of the engines themselves.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sglang.srt.blendserve.store.tally import Tally

_OF_LATE = 60.0
"""Seconds whose answers tell how the time is divided."""


class Running(NamedTuple):
    """A batch with lines in the engines: what it has answered, and how many lines these are."""

    tally: Tally
    in_flight: int


class GpuTime:
    """Divides the time of the engines among batches, by their ids."""

    def __init__(
        self,
        gpus: Callable[[], float],
        weigh: Callable[[Tally], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing runs yet.

        Args:
            gpus: returns how many the engines have that work now.
            weigh: returns the work of what was answered, in any unit.
            clock: seconds from any beginning.
        """
        self._gpus, self._weigh, self._clock = gpus, weigh, clock
        self._last = clock()
        self._answered: dict[str, deque[tuple[float, Tally]]] = {}
        self._due: dict[str, float] = {}

    def tick(self, running: Mapping[str, Running]) -> None:
        """Divide the time since the last call among those that ran meanwhile."""
        now = self._clock()
        passed, self._last = now - self._last, now
        for batch_id in [one for one in self._answered if one not in running]:
            del self._answered[batch_id]
        for batch_id, one in running.items():
            marks = self._answered.setdefault(batch_id, deque())
            marks.append((now, one.tally))
            while len(marks) > 2 and marks[1][0] <= now - _OF_LATE:
                marks.popleft()
        busy = [batch_id for batch_id, one in running.items() if one.in_flight]
        shares = self._shares(busy, running) if len(busy) > 1 else [1.0] * len(busy)
        whole, gpus = sum(shares), self._gpus() if busy else 0
        for batch_id, share in zip(busy, shares, strict=True):
            due = self._due.get(batch_id, 0.0)
            self._due[batch_id] = due + passed * gpus * share / whole

    def due(self, batch_id: str) -> float:
        """Return the GPU-seconds of a batch that were not taken yet."""
        return self._due.get(batch_id, 0.0)

    def take(self, batch_id: str) -> float:
        """Return the GPU-seconds of a batch since the last time, to be written down."""
        return self._due.pop(batch_id, 0.0)

    def _shares(self, busy: list[str], running: Mapping[str, Running]) -> list[float]:
        done = [self._answered[one][-1][1].minus(self._answered[one][0][1]) for one in busy]
        work = [self._weigh(tally) for tally in done]
        if sum(work) > 0:
            return work
        return [float(running[one].in_flight) for one in busy]


class Done(NamedTuple):
    """How much of a batch is done, and how much that says of how long the rest will take.

    Attributes:
        share: 0 to 1.
        trusted: the part that the batch's own speed has in a prediction, 0 to 1.
    """

    share: float
    trusted: float

    @classmethod
    def by_work(cls, share: float) -> Done:
        """By predicted work, of which requests that run count half."""
        return cls(share, share)

    @classmethod
    def by_lines(cls, share: float) -> Done:
        """By lines: where all are in the engine at once, a tenth has ended after half of the time,
        and the second half of them says what the first does not."""
        return cls(share, max(2 * share - 1, 0.0))


def predicted(used: float, done: Done, expected: float | None) -> float | None:
    """Return the GPU-seconds that a batch will have taken in all; None: nobody knows.

    Args:
        used: those so far.
        done: how much of it is done.
        expected: those in all by what the batches before have cost; None: not known.
    """
    by_itself = used / done.share if done.share > 0 and used > 0 else None
    if expected is None or by_itself is None:
        return by_itself if expected is None else max(expected, used)
    return (1 - done.trusted) * max(expected, used) + done.trusted * by_itself
