"""Lines that are for any engine wait here until one has room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from sglang.srt.blendserve.dispatch.engine_rooms import EnginePlace, EngineRooms


class RoomQueue:
    """Gives places in engines to lines, in the order in which they ask. Of one event loop."""

    def __init__(self, rooms: EngineRooms, there: Callable[[], Iterable[int]]) -> None:
        """Wait for nothing yet.

        Args:
            rooms: of the engines; whenever a line leaves one, the next one looks.
            there: returns the numbers of the engines that are there.
        """
        self._rooms, self._there = rooms, there
        self._waiting = 0
        self._changed = asyncio.Condition()
        rooms.on_leave = self._left

    async def take(self) -> EnginePlace:
        """Return a place in the engine that has most room, when one has any."""
        self._waiting += 1
        try:
            async with self._changed:  # held while it is looked, so that no word is lost
                while (number := self._roomiest()) is None:
                    await self._changed.wait()
                return self._rooms.take(number)
        finally:
            self._waiting -= 1

    async def look_again(self, lines: int | None = None) -> None:
        """Let so many of those that wait look again; None: all."""
        async with self._changed:
            self._changed.notify(self._waiting if lines is None else lines)

    def _roomiest(self) -> int | None:
        free = self._rooms.now().free
        best = max(self._there(), key=free.__getitem__, default=None)
        return None if best is None or free[best] <= 0 else best

    def _left(self) -> None:
        """A line has left an engine; told on the event loop."""
        if self._waiting:
            asyncio.get_running_loop().create_task(self.look_again(1))
