"""Which request an engine's window gets next, from a plan over everything that waits.

An engine holds a window: the requests that it runs and some that wait there, of which its step
policy chooses. The plan is over all requests, and what waits in the window is a small picture of
what is left of it: filled from both ends, so that compute and memory work stand in it as they do in
all that is left. So the engine can blend to the end, and neighbours in the prefix tree come
together.
"""

from __future__ import annotations

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool


class Dispatcher:
    """Hands out the requests of a pool that has everything, for a window that has little."""

    def __init__(self, pool: RequestPool) -> None:
        """``pool``: all requests; a request that is handed over counts as started there."""
        self.pool = pool

    @property
    def left(self) -> RemainingWork:
        """Predicted work of the planned requests that were not handed over yet, seconds."""
        return self.pool.current.rest

    def hand_over(self, window: RemainingWork, left: RemainingWork) -> PoolRequest | None:
        """Return the next request for a window, which counts as started; None if there is none.

        What has been overtaken for too long goes first, then the sample that lengths are learned
        from, then the side of the scan of whose work the window has too little.

        Args:
            window: predicted work of the requests that wait in the window, seconds; not of those
                that run, of which the memory-bound ones run longest.
            left: predicted work of all that was not handed over, of this pool and any other.
        """
        current = self.pool.current
        request = self.pool.patience.overdue() or current.next_sample()
        if request is None:
            lacks_compute = window.compute * left.memory < left.compute * window.memory
            request = current.peek(Side.COMPUTE if lacks_compute else Side.MEMORY)
        if request is not None:
            self.pool.start(request)
        return request

    def work(self, request: PoolRequest) -> RemainingWork:
        """Return the predicted work of one request, seconds; none before it is in a plan."""
        return self.pool.current.work(request.index)
