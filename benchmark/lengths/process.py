"""An online run at the level of requests: who has finished, who runs and who waits, at any time.

``seats`` requests run at once; each makes one token per step, and when it ends the next in the
given order takes its seat. Prefill takes no time: only the order of events matters here.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """What a scheduler can see at one time."""

    finished: Ints
    """Requests that have ended, in the order of their ends."""
    running: Ints
    generated: Ints
    """Tokens that each running request has so far."""
    waiting: Ints


@dataclass(frozen=True)
class OnlineRun:
    """Start and end of n requests, in steps; both (n,)."""

    start: Ints
    end: Ints

    @classmethod
    def of(cls, order: Ints, output_tokens: Ints, seats: int) -> OnlineRun:
        """Run all requests in this order."""
        start = np.zeros(order.size, dtype=np.int64)
        free: list[int] = [0] * min(seats, order.size)
        for request in order.tolist():
            now = heapq.heappop(free)
            start[request] = now
            heapq.heappush(free, now + int(output_tokens[request]))
        return cls(start, start + output_tokens)

    def moment(self, time: int) -> Moment:
        """The state after ``time`` steps."""
        ended = np.flatnonzero(self.end <= time)
        running = np.flatnonzero((self.start <= time) & (self.end > time))
        return Moment(
            finished=ended[np.argsort(self.end[ended], kind="stable")],
            running=running,
            generated=time - self.start[running],
            waiting=np.flatnonzero(self.start > time),
        )

    def time_of(self, share: float) -> int:
        """When this share of the requests has finished."""
        return int(np.sort(self.end)[max(int(np.ceil(share * self.end.size)) - 1, 0)])


def from_both_sides(order: Ints, first: Ints) -> Ints:
    """``first``, then the rest of a plan's ``order`` from both sides in turn."""
    rest = order[~np.isin(order, first)]
    both = np.empty_like(rest)
    both[0::2] = rest[: (rest.size + 1) // 2]
    both[1::2] = rest[(rest.size + 1) // 2 :][::-1]
    return np.concatenate((first, both))
