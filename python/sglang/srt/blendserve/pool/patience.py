"""How often a waiting request may be overtaken before it goes ahead of the plan.

A plan is made for throughput: it takes requests from both ends of its order, and under continuous
arrivals each new plan puts newcomers in front of what lay in the middle of the one before. Left to
itself the middle waits for ever. So each request may be overtaken by a number of starts that its
job explains: as many as its job would take if all jobs in the pool took turns, or the whole pool if
that is less, twice over (`PlanningRules.turns`). Then it goes first, by deadline. Where a pool has
only a window of its jobs, their sizes are those of the whole jobs (`PoolRequest.job_requests`):
what waits elsewhere overtakes, too.

A pool that is filled once and served never comes to that: with W requests there are W starts. Its
size counts as the largest that a request has seen, because a job arrives bit by bit. The bound: a
request waits for at most ``turns * W + W`` starts, W being that size.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from operator import attrgetter

from sglang.srt.blendserve.pool.pool_request import PoolRequest

_job = attrgetter("job")


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
        self._numbers = count()
        # By id: those that wait since after the last plan, new or put back.
        self._new: dict[str, PoolRequest] = {}
        # By job: what explains all of its requests in the queue, at least.
        self._explained: dict[str, int] = {}

    def planned(self, waiting: Iterable[PoolRequest]) -> None:
        """There is a new plan: set the deadlines of all that wait, or put them off.

        ``waiting``: all of them; those that were never handed out in the order of arrival.
        """
        requests = list(waiting)
        jobs: dict[str, int] = Counter(map(_job, requests))
        for request in requests:
            jobs[request.job] = max(jobs[request.job], request.job_requests)
        everything = sum(jobs.values())
        explained = {
            job: min(everything, len(jobs) * own + self._least) for job, own in jobs.items()
        }
        more = any(most > self._explained.get(job, 0) for job, most in explained.items())
        if more or len(self._queue) > 2 * len(requests):
            self._queue, self._explained = [], explained
            self._set_deadlines(requests, explained)
        else:  # mostly: where requests only leave, nobody's deadline is put off
            self._set_deadlines([*self._new.values()], explained)
        self._new = {}

    def _set_deadlines(self, requests: list[PoolRequest], explained: dict[str, int]) -> None:
        """Queue ``requests``, which their jobs explain (or explained before) so many starts."""
        for request in requests:
            own = explained[request.job]
            self._explained[request.job] = min(self._explained[request.job], own)
            request.explained = max(request.explained, own)
            # Numbered in the order of waiting, which is the same on all ranks.
            self._queue.append((self._deadline(request), next(self._numbers), request))
        heapq.heapify(self._queue)

    def arrived(self, request: PoolRequest) -> None:
        """``request`` is new; it has a deadline once there is a plan with it."""
        request.arrived_at = self.starts
        self._new[request.rid] = request

    def started(self, request: PoolRequest) -> None:
        """``request`` is handed out."""
        self.starts += 1
        self._new.pop(request.rid, None)

    def put_back(self, request: PoolRequest) -> None:
        """The engine gave ``request`` back."""
        self.starts -= 1
        self._new[request.rid] = request

    def ended(self, request: PoolRequest) -> None:
        """``request`` has left the pool."""
        self._new.pop(request.rid, None)

    def forget_ended(self) -> None:
        """Keep none that does not wait any more."""
        self._queue = [entry for entry in self._queue if self._waits(entry[2])]
        heapq.heapify(self._queue)

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
