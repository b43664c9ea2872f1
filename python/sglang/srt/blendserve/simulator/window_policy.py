"""Our policy with a window: a plan over everything hands requests to an engine that has few."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from sglang.srt.blendserve.dispatch.dispatcher import Dispatcher
from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.pool.pool_request import PoolRequest, Tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.blend_policy import BlendPolicy, arrivals
from sglang.srt.blendserve.simulator.fast import FastEngine
from sglang.srt.blendserve.simulator.workload import Ints, Workload


class WindowPolicy(BlendPolicy):
    """A `BlendPolicy` whose pool never holds more than ``window`` requests."""

    quiet = False

    def __init__(
        self,
        workload: Workload,
        prompts: list[Tokens],
        policy: AnyStepPolicy,
        everything: RequestPool,
        window: int,
        told: Ints | None = None,
        *,
        plan_ahead: bool = True,
        known_ahead: float = 1.0,
    ) -> None:
        """``policy``: the engine's, over its own pool. ``everything``: the pool planned over.
        ``plan_ahead``: False for the order of the file, in which nothing is planned before the
        window. ``known_ahead``: see `BlendOptions`; of the plan ahead."""
        self.policy, self.pool = policy, policy.pool
        self.requests = self._make_requests(workload, prompts, told)
        for request in self.requests:
            request.job_requests = workload.size
        self._dispatcher, self._window = Dispatcher(everything), window
        self._elsewhere = self._make_requests(workload, prompts, told)
        """As the plan over everything has the requests."""
        self._in_order: Iterator[PoolRequest] | None = None
        self._coming: Iterator[PoolRequest] = iter(())
        if not plan_ahead:
            self._in_order = iter(self.requests)
            return
        self._coming = arrivals(self._elsewhere, known_ahead, everything)

    def choose(self, engine: FastEngine) -> int:
        """Fill the window, and start what the step policy selects."""
        self._dispatcher.pool.plan_if_due(quiet=True)
        for _ in range(self._window - len(self.pool.table.by_rid)):
            request = self._next()
            if request is None:
                break
            self.pool.add(request)
        self.pool.current.beyond = self._dispatcher.pool.current.rest
        return super().choose(engine)

    def _next(self) -> PoolRequest | None:
        if self._in_order is not None:
            return next(self._in_order, None)
        handed = self._dispatcher.hand_over("")  # all are of one job
        return None if handed is None else self.requests[int(handed.rid)]

    def finished(self, request: int, output_tokens: int) -> None:
        """Tell both pools how long a request was."""
        self.pool.finish(self.requests[request], output_tokens)
        if self._in_order is None:
            elsewhere = self._elsewhere[request]
            self._dispatcher.ended(elsewhere)
            self._dispatcher.pool.finish(elsewhere, output_tokens)
            for late in islice(self._coming, 1):
                self._dispatcher.pool.add(late)
