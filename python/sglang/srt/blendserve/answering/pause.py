"""Whether a job sends lines into the engine."""

from __future__ import annotations

import asyncio


class Pause:
    """A job's own switch. What is in the engine ends; nothing else goes in. Belongs to one event
    loop."""

    def __init__(self, *, paused: bool = False) -> None:
        self._goes_on = asyncio.Event()
        self.set(paused=paused)

    @property
    def paused(self) -> bool:
        """Whether the job sends nothing."""
        return not self._goes_on.is_set()

    def set(self, *, paused: bool) -> None:
        """Pause the job, or let it go on."""
        if paused:
            self._goes_on.clear()
        else:
            self._goes_on.set()

    async def over(self) -> None:
        """Return when the job is not paused."""
        await self._goes_on.wait()
