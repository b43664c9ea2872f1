"""Which request an engine's window gets next, from a plan over everything that waits.

An engine holds a window: the requests that it runs and some that wait there, of which its step
policy chooses from both ends of their order. So half of the window comes from either end of the
order of everything, and who has ended is replaced from the same end: as long as some of either half
wait, the engine has the choice that it would have if all requests were in it.
"""

from __future__ import annotations

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool


class Dispatcher:
    """Hands out the requests of a pool that has everything, for a window that has little."""

    def __init__(self, pool: RequestPool) -> None:
        """``pool``: all requests; a request that is handed over counts as started there."""
        self.pool = pool
        self._in_window = dict.fromkeys(Side, 0)
        self._sides: dict[str, Side] = {}

    def hand_over(self) -> PoolRequest | None:
        """Return the next request for the window, which counts as started; None if there is none.

        What has been overtaken for too long goes first, then the sample that lengths are learned
        from, then the end of the order that the window has fewer requests of.
        """
        pool, side = self.pool, None
        request = pool.patience.overdue() or pool.current.next_sample()
        if request is None:
            side = min(Side, key=self._in_window.__getitem__)
            request = pool.current.peek(side)
        if request is None:
            return None
        pool.start(request)
        if side is not None:
            self._sides[request.rid] = side
            self._in_window[side] += 1
        return request

    def ended(self, request: PoolRequest) -> None:
        """``request`` has left the engine."""
        side = self._sides.pop(request.rid, None)
        if side is not None:
            self._in_window[side] -= 1
