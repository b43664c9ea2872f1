"""Which requests the windows of engines get next, from a plan over everything that waits.

An engine holds a window: the requests that it runs and some that wait there, of which its step
policy chooses from both ends of their order. So half of the window comes from either end of the
order of everything, and who has ended is replaced from the same end: as long as some of either half
wait, the engine has the choice that it would have if all requests were in it.

The plan is over all jobs. How much of the window each of them gets is not decided here: whoever
feeds an engine asks for a job's next request, and gets the one that is nearest to that end of the
order which the window has fewer of, whosever they are.

Several engines are fed from the same order: each has a window with both ends in it, and pieces of
the order to itself, so that what shares a prefix stays together (`DividedOrder`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from sglang.srt.blendserve.dispatch.divided_order import DividedOrder
from sglang.srt.blendserve.dispatch.engine_windows import EngineWindows, Held
from sglang.srt.blendserve.plan.scanner import DualScanner, Side
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool

_job = attrgetter("job")


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
    """Hands out the requests of a pool that has everything, for windows that have little."""

    def __init__(self, pool: RequestPool, engines: int = 1) -> None:
        """Hand nothing out yet.

        Args:
            pool: all requests; one that is handed over counts as started there. Its KV slots are
                those of one engine.
            engines: how many there are.
        """
        self.pool = pool
        self.windows = EngineWindows(engines, pool.kv_slots)
        self.unplanned: Counter[str] = Counter()
        """Requests of each job that are in no plan yet; whoever adds one counts it here."""
        self._work: dict[str, JobWork] = defaultdict(JobWork)
        self._followed: DualScanner | None = None
        self._orders: dict[str, DividedOrder] = {}
        self._samples: dict[str, list[PoolRequest]] = {}

    def next_engine(self, rooms: Sequence[int], idle: Sequence[bool] = ()) -> int | None:
        """Return the engine that gets the next requests; None: none may have more now.

        Args:
            rooms: how many requests each may still get; below 0: it is not there.
            idle: whether each has nothing to do.
        """
        return self.windows.next_engine(rooms, self.pool.current.rest, idle)

    def hand_over(self, job: str, engine: int = 0) -> PoolRequest | None:
        """Return the next request of ``job`` for the window of an engine, which counts as started;
        None if there is none.

        The sample that lengths are learned from goes first, then the end of the order that the
        window has fewer requests of. Nobody is overdue here, however often it is overtaken: a job
        is done when all of its requests are, and which job gets on is decided elsewhere.
        """
        request, side = self._next_sample(job), None
        if request is None:
            side = self.windows.side(engine)
            request = self._next(job, engine, side)
        if request is None:
            return None
        self.start(request, engine, side)
        return request

    def start(
        self, request: PoolRequest, engine: int | None = None, side: Side | None = None
    ) -> None:
        """``request``, which waits, goes into a window.

        Args:
            engine: whose; None: not known.
            side: the end of the order that it was taken from; None: from none.
        """
        current = self.pool.current
        work = current.work_of(request.index)
        self.windows.add(request.rid, Held(engine, side, work, current.tokens_of(request.index)))
        self.pool.start(request)
        job = self._work[request.job]
        job.compute -= work.compute
        job.memory -= work.memory
        job.running += sum(work)

    def ended(self, request: PoolRequest) -> None:
        """``request`` has left its engine; the pool may forget it after that."""
        work = self.windows.remove(request.rid)
        if work is not None:
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
        for kept in (self.unplanned, self._work, self._orders, self._samples):
            kept.pop(job, None)

    def _next_sample(self, job: str) -> PoolRequest | None:
        self._follow()
        samples = self._samples.get(job, [])
        while samples and not self.pool.waits(samples[-1]):
            samples.pop()
        return samples[-1] if samples else None

    def _next(self, job: str, engine: int, side: Side) -> PoolRequest | None:
        table, order = self.pool.table, self._orders.get(job)
        index = None if order is None else order.peek(engine, side, table.waits)
        return None if index is None else table.all[index]

    def _fill(self, request: int) -> float:
        """The part of an engine's KV cache that a request is predicted to fill."""
        return self.pool.current.tokens_of(request) / self.pool.kv_slots

    def _together(self, one: int, other: int) -> bool:
        """Whether two requests share half of the shorter prompt, and with it more than the second
        one writes, so that one engine gets both."""
        first, second = (self.pool.table.all[index] for index in (one, other))
        half = (min(first.prompt.size, second.prompt.size) + 1) // 2
        return (
            half >= self.pool.current.tokens_of(other)
            and first.namespace == second.namespace
            and np.array_equal(first.prompt[:half], second.prompt[:half])
        )

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
        self._orders = {}
        for job in self._work.values():
            job.compute = job.memory = 0.0
        for name, number in numbers.items():
            own = waiting[whose == number]
            self._orders[name] = DividedOrder(own, len(self.windows), self._together, self._fill)
            work = current.work_of_all(own)
            self._work[name].compute, self._work[name].memory = work
