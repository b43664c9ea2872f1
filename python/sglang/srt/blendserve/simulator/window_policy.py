"""Our policy with a window: a plan over everything hands requests to engines that have few."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.dispatcher import Dispatcher
from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.pool.pool_request import PoolRequest, Tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.blend_policy import BlendPolicy, arrivals
from sglang.srt.blendserve.simulator.fast import FastEngine
from sglang.srt.blendserve.simulator.workload import Ints, Workload

_AT_ONCE = 16
"""Requests that are handed to an engine before it is looked again which has least."""


class PlanAhead:
    """The plan over everything, which feeds the windows of one or several engines."""

    def __init__(
        self, requests: list[PoolRequest], pool: RequestPool, engines: int, known_ahead: float
    ) -> None:
        """Plan over ``requests`` in ``pool``; ``known_ahead``: see `BlendOptions`."""
        self.requests = requests
        """As this plan has them."""
        self.given_back: deque[int] = deque()
        """Requests of an engine that died."""
        self.engines = engines
        """Engines that have not died."""
        self._dispatcher = Dispatcher(pool, engines)
        self._policies: list[WindowPolicy] = []
        self._coming = arrivals(requests, known_ahead, pool)

    @property
    def left(self) -> RemainingWork:
        """Predicted work that no engine has, each engine's share of it, seconds."""
        compute, memory = self._dispatcher.pool.current.rest
        return RemainingWork(compute / self.engines, memory / self.engines)

    def join(self, policy: WindowPolicy) -> None:
        """``policy`` is that of the next engine."""
        self._policies.append(policy)

    def fill(self) -> None:
        """Hand requests to engines as long as they may have more."""
        self._dispatcher.pool.plan_if_due(quiet=True)
        while (engine := self._next_engine()) is not None:
            for _ in range(min(_AT_ONCE, self._policies[engine].room)):
                if self.given_back:
                    request = self.given_back.popleft()
                else:
                    handed = self._dispatcher.hand_over("", engine)  # all are of one job
                    if handed is None:
                        return
                    request = int(handed.rid)
                self._policies[engine].add(request)

    def _next_engine(self) -> int | None:
        return self._dispatcher.next_engine([policy.room for policy in self._policies])

    def finished(self, request: int, output_tokens: int) -> None:
        """Learn the length of a request that has ended."""
        self._dispatcher.ended(self.requests[request])
        self._dispatcher.pool.finish(self.requests[request], output_tokens)
        for late in islice(self._coming, 1):
            self._dispatcher.pool.add(late)

    def died(self, engine: int, had: Sequence[int]) -> None:
        """An engine has died, and what it had goes to others."""
        self.engines -= 1
        self._dispatcher.windows.lost(engine)
        self._policies[engine].room = -1
        self.given_back.extend(had)


class FileAhead:
    """The order of the file, in which nothing is planned before the window (an ablation)."""

    left = RemainingWork(0.0, 0.0)

    def __init__(self, requests: int) -> None:
        self._in_order = iter(range(requests))
        self._policies: list[WindowPolicy] = []

    def join(self, policy: WindowPolicy) -> None:
        """``policy`` is that of the engine."""
        self._policies.append(policy)

    def fill(self) -> None:
        """Hand requests to the engine as long as it has room."""
        for policy in self._policies:
            for request in islice(self._in_order, policy.room):
                policy.add(request)

    def finished(self, request: int, output_tokens: int) -> None:
        """Learn nothing."""


class WindowPolicy(BlendPolicy):
    """A `BlendPolicy` whose pool never holds more than ``window`` requests."""

    quiet = False

    def __init__(
        self,
        workload: Workload,
        prompts: list[Tokens],
        policy: AnyStepPolicy,
        ahead: PlanAhead | FileAhead,
        window: int,
        told: Ints | None = None,
        *,
        like: WindowPolicy | None = None,
    ) -> None:
        """``policy``: the engine's, over its own pool. ``ahead``: feeds it. ``like``: that of
        another engine for the same requests, each of which only one of them gets."""
        self.policy, self.pool = policy, policy.pool
        self.requests = (
            self.make_requests(workload, prompts, told) if like is None else like.requests
        )
        for request in self.requests:
            request.job_requests = workload.size
        self._ahead = ahead
        self.room = window
        """How many requests it still takes; below 0: it has died."""
        self._coming = iter(())
        ahead.join(self)

    def add(self, request: int) -> None:
        """Take a request into the window."""
        self.pool.add(self.requests[request])
        self.room -= 1

    def choose(self, engine: FastEngine) -> int:
        """Fill the window, and start what the step policy selects."""
        self._ahead.fill()
        self.pool.current.beyond = self._ahead.left
        return super().choose(engine)

    def finished(self, request: int, output_tokens: int) -> None:
        """Tell both pools how long a request was."""
        self.pool.finish(self.requests[request], output_tokens)
        self.room += 1
        self._ahead.finished(request, output_tokens)

    def give_back(self) -> list[int]:
        """The engine has died: return the requests that it had, which are to begin anew."""
        had = sorted(map(int, self.pool.table.by_rid))
        for index in had:
            was = self.requests[index]
            self.requests[index] = PoolRequest(
                was.rid, was.prompt, was.max_tokens, was.known_length, job_requests=was.job_requests
            )
        return had
