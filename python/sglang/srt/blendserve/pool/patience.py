"""How often a waiting request may be overtaken before it goes ahead of the plan.

A plan is made for throughput: it takes requests from both ends of its order, and under continuous
arrivals each new plan puts newcomers in front of what lay in the middle of the one before. Left to
itself the middle waits for ever. So each request may be overtaken by a number of starts that its
job explains: as many as its job would take if all jobs in the pool took turns, or the whole pool if
that is less, twice over (`PlanningRules.turns`). Then it goes first, by deadline.

A pool that is filled once and served never comes to that: with W requests there are W starts. Its
size counts as the largest that a request has seen, because a job arrives bit by bit. The bound: a
request waits for at most ``turns * W + W`` starts, W being that size.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable

from sglang.srt.blendserve.pool.pool_request import PoolRequest


class Patience:
    """Counts starts, and knows who has been overtaken too often. It depends on calls only, so the
    ranks of a group, which see the same ones, agree."""

    def __init__(self, waits: Callable[[PoolRequest], bool], *, turns: float, least: int) -> None:
        """
        Args:
            waits: whether a request waits that was never handed out.
            turns: how many times the starts that its job explains a request may wait.
            least: fewest starts that a job explains, however small.
        """
        self.starts = 0
        """Requests handed out so far, less those that were given back."""
        self._waits, self._turns, self._least = waits, turns, least
        self._queue: list[tuple[float, int, PoolRequest]] = []

    def planned(self, waiting: Iterable[PoolRequest]) -> None:
        """There is a new plan: set the deadlines of all that wait, or put them off."""
        requests = list(waiting)
        jobs = Counter(request.job for request in requests)
        explained = {
            job: min(len(requests), len(jobs) * own + self._least) for job, own in jobs.items()
        }
        for request in requests:
            request.explained = max(request.explained, explained[request.job])
        # Numbered in the order of waiting, which is the same on all ranks.
        self._queue = [(self._deadline(r), at, r) for at, r in enumerate(requests)]
        heapq.heapify(self._queue)

    def arrived(self, request: PoolRequest) -> None:
        """``request`` is new; it has a deadline once there is a plan with it."""
        request.arrived_at = self.starts

    def started(self) -> None:
        """A request is handed out."""
        self.starts += 1

    def put_back(self) -> None:
        """The engine gave a request back."""
        self.starts -= 1

    def is_overdue(self, request: PoolRequest) -> bool:
        """Return whether ``request`` has been overtaken too often."""
        return request.explained > 0 and self._deadline(request) <= self.starts

    def overdue(self) -> PoolRequest | None:
        """Return the request, never handed out, that goes first now; None if none is overdue."""
        queue = self._queue
        while queue and queue[0][0] <= self.starts:
            if self._waits(queue[0][2]):
                return queue[0][2]
            heapq.heappop(queue)
        return None

    def _deadline(self, request: PoolRequest) -> float:
        return request.arrived_at + self._turns * request.explained
