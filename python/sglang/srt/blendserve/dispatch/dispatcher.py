"""Which request an engine's window gets next, from a plan over everything that waits.

An engine holds a window: the requests that it runs and some that wait there, of which its step
policy chooses. The plan is over all requests of all jobs, and the window is a small picture of what
is left of it: filled from both ends, so that compute and memory work stand in it as they do in all
that is left. So the engine can blend to the end, and neighbours in the prefix tree come together.
"""

from __future__ import annotations

from typing import NamedTuple

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool


class Handed(NamedTuple):
    """A request that goes to a window."""

    request: PoolRequest
    sample: bool
    """Whether lengths are to be learned from it: it runs before the plan's order."""


class Dispatcher:
    """Hands out the requests of a pool that has everything, for windows that have little."""

    def __init__(self, pool: RequestPool) -> None:
        """``pool``: all requests; a request that is handed over counts as started there."""
        self.pool = pool

    @property
    def left(self) -> RemainingWork:
        """Predicted work of what was not handed over yet, seconds."""
        return self.pool.current.rest

    def hand_over(self, window: RemainingWork) -> Handed | None:
        """Return the next request for a window; None if there is none.

        ``window``: predicted work of the requests that wait there. What has been overtaken for too
        long goes first, then the sample that lengths are learned from, then the side of the scan
        of whose work the window has too little.
        """
        pool = self.pool
        overdue = pool.patience.overdue()
        sample = None if overdue is not None else pool.current.next_sample()
        request = overdue or sample or pool.current.peek(self._side(window))
        if request is None:
            return None
        pool.start(request)
        return Handed(request, sample is not None)

    def work(self, request: PoolRequest) -> RemainingWork:
        """Return the predicted work of one request of the plan, seconds."""
        return self.pool.current.work(request.index)

    def _side(self, window: RemainingWork) -> Side:
        """The side whose work the window has too little of, against all that is left."""
        left = self.left
        if window.compute * left.memory < left.compute * window.memory:
            return Side.COMPUTE
        return Side.MEMORY
