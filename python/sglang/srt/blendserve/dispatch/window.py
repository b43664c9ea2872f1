"""What waits in an engine's window, between two reports of the engine."""

from __future__ import annotations

from collections import deque

from sglang.srt.blendserve.cost.remaining_work import RemainingWork


class WaitingWork:
    """Predicted work of the requests that wait in an engine, and do not run yet.

    The engine reports it now and then; what has been handed over since is added to it.
    """

    def __init__(self) -> None:
        self._since: deque[RemainingWork] = deque()
        self.work = RemainingWork(0.0, 0.0)
        """Predicted work, seconds."""

    def add(self, work: RemainingWork) -> None:
        """A request of this predicted work, seconds, was handed over."""
        self._since.append(work)
        self.work = RemainingWork(self.work.compute + work.compute, self.work.memory + work.memory)

    def report(self, work: RemainingWork, unplanned: int) -> None:
        """The engine has said what waits there.

        Args:
            work: of what its own plan knows, seconds.
            unplanned: requests that have come since that plan; the last ones handed over.
        """
        while len(self._since) > max(unplanned, 0):
            self._since.popleft()
        self.work = RemainingWork(
            work.compute + sum(one.compute for one in self._since),
            work.memory + sum(one.memory for one in self._since),
        )
