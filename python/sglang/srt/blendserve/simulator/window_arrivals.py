"""Requests on their way into SGLang's scheduler through a window, planned before it as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.blendserve.dispatch.dispatcher import Dispatcher
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.arrivals import Arrivals
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions


class WindowArrivals(Arrivals):
    """`Arrivals` of which the scheduler never holds more than a window, in the order of a plan over
    all of them, as `run` and the server hand requests over."""

    def __init__(
        self,
        scheduler: Any,
        rids: Sequence[str],
        prompts: Sequence[Any],
        max_tokens: Sequence[int],
        machine: Machine,
        options: BlendOptions,
    ) -> None:
        """Plan over all requests.

        Args:
            scheduler: SGLang's, with our pool.
            rids: ids of the requests, in the order of the file.
            prompts: (tokens,) of each.
            max_tokens: of each.
            machine: whose costs are planned with.
            options: those of the policy, with a window.
        """
        super().__init__(scheduler, rids, prompts, max_tokens, 0)
        self._window = options.window
        pool = RequestPool(machine.cost, machine.kv_slots, rules=options.rules)
        self._dispatcher = Dispatcher(pool)
        self._given = dict(zip(rids, zip(prompts, max_tokens, strict=True), strict=True))
        self._elsewhere = {
            rid: PoolRequest(rid, prompt, int(limit))
            for rid, (prompt, limit) in self._given.items()
        }
        for request in self._elsewhere.values():
            request.job_requests = len(rids)
            pool.add(request)

    def ended(self, req: Any) -> None:
        """Tell the plan how long a request was."""
        request = self._elsewhere[req.rid]
        self._dispatcher.ended(request)
        self._dispatcher.pool.finish(request, len(req.output_ids))

    def feed(self) -> None:
        """Fill the window with what the plan has next."""
        self._dispatcher.pool.plan_if_due(quiet=True)
        for _ in range(self._window - len(self._scheduler.pool.table.by_rid)):
            handed = self._dispatcher.hand_over("")  # all are of one job
            if handed is None:
                break
            self.hand_over(handed.rid, *self._given[handed.rid])
        self._scheduler.pool.current.beyond = self._dispatcher.pool.current.rest
