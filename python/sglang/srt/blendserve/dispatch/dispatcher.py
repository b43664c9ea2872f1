"""Which request an engine's window gets next, from a plan over everything that waits.

An engine holds a window: the requests that it runs and some that wait there, of which its step
policy chooses from both ends of their order. So half of the window comes from either end of the
order of everything, and who has ended is replaced from the same end: as long as some of either half
wait, the engine has the choice that it would have if all requests were in it.

The plan is over all jobs. How much of the window each of them gets is not decided here: whoever
feeds the engine asks for a job's next request, and gets the one that is nearest to that end of the
order which the window has fewer of, whosever they are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.both_ends import BothEnds
from sglang.srt.blendserve.plan.scanner import DualScanner, Side
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool

_job = attrgetter("job")

_NO_WORK = RemainingWork(0.0, 0.0)


@dataclass(slots=True)
class JobWork:
    """Predicted work of one job, seconds of compute and of memory.

    Attributes:
        compute, memory: of its requests that are planned and were not handed over.
        running: both, of those that were handed over and have not ended.
        done: both, of those that have ended.
    """

    compute: float = 0.0
    memory: float = 0.0
    running: float = 0.0
    done: float = 0.0


class Dispatcher:
    """Hands out the requests of a pool that has everything, for a window that has little."""

    def __init__(self, pool: RequestPool) -> None:
        """``pool``: all requests; a request that is handed over counts as started there."""
        self.pool = pool
        self.unplanned: Counter[str] = Counter()
        """Requests of each job that are in no plan yet; whoever adds one counts it here."""
        self._in_window = dict.fromkeys(Side, 0)
        self._handed_over: dict[str, tuple[Side | None, RemainingWork]] = {}
        self._work: dict[str, JobWork] = defaultdict(JobWork)
        self._followed: DualScanner | None = None
        self._ends: dict[str, BothEnds] = {}
        self._samples: dict[str, list[PoolRequest]] = {}

    def hand_over(self, job: str) -> PoolRequest | None:
        """Return the next request of ``job`` for the window, which counts as started; None if
        there is none.

        The sample that lengths are learned from goes first, then the end of the order that the
        window has fewer requests of. Nobody is overdue here, however often it is overtaken: a job
        is done when all of its requests are, and which job gets on is decided elsewhere.
        """
        request, side = self._next_sample(job), None
        if request is None:
            side = min(Side, key=self._in_window.__getitem__)
            request = self._next(job, side)
        if request is None:
            return None
        self.start(request, side)
        return request

    def start(self, request: PoolRequest, side: Side | None = None) -> None:
        """``request``, which waits, goes into the window.

        ``side``: the end of the order that it was taken from; None: from none.
        """
        work = self.pool.current.work_of(request.index)
        self.pool.start(request)
        self._handed_over[request.rid] = side, work
        if side is not None:
            self._in_window[side] += 1
        job = self._work[request.job]
        job.compute -= work.compute
        job.memory -= work.memory
        job.running += sum(work)

    def ended(self, request: PoolRequest) -> None:
        """``request`` has left the engine; the pool may forget it after that."""
        side, work = self._handed_over.pop(request.rid, (None, _NO_WORK))
        if side is not None:
            self._in_window[side] -= 1
        job = self._work[request.job]
        job.running -= sum(work)
        job.done += sum(work)

    def work_of(self, job: str) -> JobWork:
        """Return the predicted work of a job."""
        self._follow()
        return self._work[job]

    def end_job(self, job: str) -> None:
        """Forget a job."""
        for request in self.pool.requests_of(job):
            self.ended(request)
        self.pool.end_job(job)
        for kept in (self.unplanned, self._work, self._ends, self._samples):
            kept.pop(job, None)

    def _next_sample(self, job: str) -> PoolRequest | None:
        self._follow()
        samples = self._samples.get(job, [])
        while samples and not self.pool.waits(samples[-1]):
            samples.pop()
        return samples[-1] if samples else None

    def _next(self, job: str, side: Side) -> PoolRequest | None:
        table, ends = self.pool.table, self._ends.get(job)
        index = None if ends is None else ends.peek(side, table.waits)
        return None if index is None else table.all[index]

    def _follow(self) -> None:
        """Divide the order among the jobs if it is another."""
        current, everyone = self.pool.current, self.pool.table.all
        if current.scanner is self._followed:
            return
        self._followed = current.scanner
        self.unplanned = Counter(request.job for request in everyone[current.requests :])
        for request in current.take_samples():
            self._samples.setdefault(request.job, []).insert(0, request)
        waiting = current.scanner.waiting()
        names = [*map(_job, map(everyone.__getitem__, waiting.tolist()))]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        whose = np.zeros(waiting.size, dtype=np.int64)
        if len(numbers) > 1:
            whose = np.fromiter(map(numbers.__getitem__, names), np.int64, waiting.size)
        self._ends = {}
        for job in self._work.values():
            job.compute = job.memory = 0.0
        for name, number in numbers.items():
            own = waiting[whose == number]
            self._ends[name] = BothEnds(own)
            work = current.work_of_all(own)
            self._work[name].compute, self._work[name].memory = work
