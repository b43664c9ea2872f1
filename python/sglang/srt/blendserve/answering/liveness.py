"""Tell an engine that hangs from one that is busy: ask it, and see how long it takes to answer.

A scheduler answers between two steps, so the time it takes follows the time of its steps. A process
that is stopped, or waits for another that is gone, does not answer at all and does not die either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 5.0
_STEPS = 20.0


class Liveness:
    """Asks one engine for a sign of life, again and again, while it has work."""

    def __init__(self, ask: Callable[[], Awaitable[Any]], floor: float) -> None:
        """Prepare to watch.

        Args:
            ask: returns when the engine has answered.
            floor: seconds that any answer may take; covers compilation and the first step.
        """
        self._ask, self._floor = ask, floor
        self._longest = 0.0

    @property
    def bound(self) -> float:
        """Seconds after which an engine that has not answered counts as dead: `_STEPS` times what
        it has ever taken, and not less than the floor."""
        return max(self._floor, _STEPS * self._longest)

    async def wait_for_death(self, busy: Callable[[], bool]) -> None:
        """Return when the engine has not answered in time; ask only while it is ``busy``."""
        while True:
            await asyncio.sleep(min(_PAUSE_SECONDS, self._floor))
            if busy() and not await self._answers():
                logger.error(
                    "The engine has not answered for %.0f s; it counts as dead", self.bound
                )
                return

    async def _answers(self) -> bool:
        began = time.monotonic()
        question = asyncio.ensure_future(self._ask())
        try:
            await asyncio.wait({question}, timeout=self.bound)
            if not question.done():
                return False
            if (error := question.exception()) is not None:
                logger.warning("The engine could not be asked for a sign of life: %s", error)
                return True
            self._longest = max(self._longest, time.monotonic() - began)
            return True
        finally:
            question.cancel()
