"""Work that goes on beside the engine's steps: planning a large pool takes seconds.

A thread, not slices of work between steps: a plan is nearly all whole-array numpy, which lets the
interpreter go while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """One piece of work at a time, in a thread of its own."""

    def __init__(self, polls: Callable[[int], int] | None = None) -> None:
        """``polls``: in which poll, counted from the start of the work, the result for so many
        requests is handed out: not earlier, and waiting for it if need be. Processes that poll
        alike then get it in the same poll, however fast each of them is. None: as soon as it is
        there."""
        self._polls = polls
        self._thread: ThreadPoolExecutor | None = None
        self._work: Future[Result] | None = None
        self._left = 0

    @property
    def busy(self) -> bool:
        """Whether work was begun whose result is not handed out yet."""
        return self._work is not None

    def begin(self, work: Callable[[], Result], requests: int) -> None:
        """Start ``work``, which concerns so many ``requests``. Only when not `busy`."""
        assert self._work is None, "one piece of work at a time"
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "blendserve-plan")
        self._work = self._thread.submit(work)
        self._left = 0 if self._polls is None else self._polls(requests)

    def poll(self, idle_seconds: float = 0.0) -> Result | None:
        """Return the result if it is to be handed out now. Raises what the work raised.

        ``idle_seconds``: how long the caller can wait, having nothing else to do; to poll without
        a pause would take the interpreter from the work.
        """
        if self._work is None:
            return None
        self._left -= 1
        if idle_seconds:
            wait([self._work], idle_seconds)
        if self._left > 0 or (self._polls is None and not self._work.done()):
            return None
        work, self._work = self._work, None
        return work.result()

    def drop(self) -> None:
        """Nobody wants the result any more."""
        self._work = None
