"""Our policy with a window: a plan over everything hands requests to an engine that has few."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from sglang.srt.blendserve.dispatch.dispatcher import Dispatcher
from sglang.srt.blendserve.dispatch.window import WaitingWork
from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.pool.pool_request import PoolRequest, Tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.blend_policy import BlendPolicy
from sglang.srt.blendserve.simulator.fast import FastEngine
from sglang.srt.blendserve.simulator.workload import Ints, Workload

_REPORT_STEPS = 32
"""Steps between two reports of the engine, as about half a second has them."""


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
    ) -> None:
        """``policy``: the engine's, over its own pool. ``everything``: the pool planned over.
        ``plan_ahead``: False for the order of the file, in which nothing is planned before the
        window."""
        self.policy, self.pool = policy, policy.pool
        self.requests = self._make_requests(workload, prompts, told)
        self._dispatcher, self._window, self._waiting = (
            Dispatcher(everything),
            window,
            WaitingWork(),
        )
        self._elsewhere = self._make_requests(workload, prompts, told)
        """As the plan over everything has the requests."""
        self._in_order: Iterator[PoolRequest] | None = None
        if not plan_ahead:
            self._in_order = iter(self.requests)
            return
        for request in self._elsewhere:
            everything.add(request)

    def choose(self, engine: FastEngine) -> int:
        """Fill the window, and start what the step policy selects."""
        self._dispatcher.pool.plan_if_due(quiet=True)
        if engine.step_number % _REPORT_STEPS == 0:
            self._waiting.report(self.pool.current.rest, self.pool.current.unplanned)
        self._fill()
        return super().choose(engine)

    def _fill(self) -> None:
        dispatcher, pool = self._dispatcher, self.pool
        if self._in_order is not None:
            for request in islice(self._in_order, self._window - len(pool.table.by_rid)):
                pool.add(request)
            return
        for _ in range(self._window - len(pool.table.by_rid)):
            handed = dispatcher.hand_over(self._waiting.work, dispatcher.left)
            if handed is None:
                return
            pool.add(self.requests[int(handed.rid)])
            self._waiting.add(dispatcher.work(handed))

    def finished(self, request: int, output_tokens: int) -> None:
        """Tell both pools how long a request was."""
        super().finished(request, output_tokens)
        if self._in_order is None:
            self._dispatcher.pool.finish(self._elsewhere[request], output_tokens)
