"""When a run's first forward pass began, as the engine says it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.dispatch.engine_state import InternalState, ask, first_start

_ASK_SECONDS, _SOON_SECONDS, _LOOK_SECONDS = 5.0, 0.25, 2.0
"""For an engine's answer; before it is asked first, and between two times at most."""


class FirstForward:
    """Attributes:
    seconds: from the first ready engine to its first forward pass, None if not known.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None

    @asynccontextmanager
    async def watched(self, question: InternalState, stop: Stop) -> AsyncIterator[None]:
        """Find it out while lines are answered, so that it is known of a run that is stopped, too.

        Args:
            question: asks the engine, which is ready now, for its state.
            stop: of the run.
        """
        ready = time.time()
        watching = asyncio.create_task(self._watch(question, stop, ready))
        try:
            yield
        finally:
            watching.cancel()
        await self._ask(question, stop, ready)  # all was answered in no time

    async def _watch(self, question: InternalState, stop: Stop, ready: float) -> None:
        pause = _SOON_SECONDS
        while self.seconds is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS)
            await self._ask(question, stop, ready)

    async def _ask(self, question: InternalState, stop: Stop, ready: float) -> None:
        if self.seconds is not None:
            return
        started = first_start(await ask(question, stop, _ASK_SECONDS) or ())
        if started is not None:
            self.seconds = max(started - ready, 0.0)
