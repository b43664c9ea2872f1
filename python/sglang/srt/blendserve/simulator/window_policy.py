"""Our policy with a window: a plan over everything hands requests to an engine that has few."""

from __future__ import annotations

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.dispatcher import Dispatcher
from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.pool.pool_request import PoolRequest, Tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.blend_policy import BlendPolicy
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
    ) -> None:
        """``policy``: the engine's, over its own pool. ``everything``: the pool planned over."""
        self.policy, self.pool = policy, policy.pool
        self.dispatcher = Dispatcher(everything)
        self._window = window
        self._left = workload.size
        limits = (workload.max_tokens if told is None else told).tolist()
        known = told is not None
        self.requests = []
        self._elsewhere: list[PoolRequest] = []
        for index, prompt in enumerate(prompts):
            rid = str(index)
            self.requests.append(PoolRequest(rid, prompt, limits[index], known))
            self._elsewhere.append(PoolRequest(rid, prompt, limits[index], known))
            everything.add(self._elsewhere[-1])

    def choose(self, engine: FastEngine) -> int:
        """Fill the window, and start what the step policy selects."""
        everything = self.dispatcher.pool
        everything.plan_if_due(quiet=True)
        self._fill()
        self.pool.current.beyond = self.dispatcher.left
        return super().choose(engine)

    def _fill(self) -> None:
        pool = self.pool
        room = self._window - len(pool.table.by_rid)
        # What has come since the pool's last plan is in no sum of it yet.
        compute, memory = pool.current.waiting
        while room > 0:
            handed = self.dispatcher.hand_over(RemainingWork(compute, memory))
            if handed is None:
                return
            index = handed.request.rid
            request = self.requests[int(index)]
            pool.add(request)
            if handed.sample:
                pool.current.run_first(request.index)
            work = self.dispatcher.work(handed.request)
            compute, memory = compute + work.compute, memory + work.memory
            room -= 1

    def finished(self, request: int, output_tokens: int) -> None:
        """Tell both pools how long a request was."""
        super().finished(request, output_tokens)
        self.dispatcher.pool.finish(self._elsewhere[request], output_tokens)
