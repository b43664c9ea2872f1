"""The one way that stops a job: Ctrl-C, a time limit, cancelling, expiry, an engine's death."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal

StopReason = Literal[
    "cancelled", "expired", "suspended", "interrupted", "time is up", "engine died", "no engine",
    "failed",
]  # fmt: skip


class Stopped(Exception):
    """Work was given up because a `Stop` was requested."""


class Stop:
    """Whether and why one job ends early. Belongs to the event loop that the job runs on.

    Attributes:
        reason: why the job stops, None while it does not. May be read in any thread.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._requested = asyncio.Event()
        self._suspended = asyncio.Event()

    def request(self, reason: StopReason) -> None:
        """Stop the job. The first reason counts, except that ``suspended`` replaces any: a server
        that goes down leaves all that is open to the next one."""
        if self.reason is None or reason == "suspended":
            self.reason = reason
        self._requested.set()
        if reason == "suspended":
            self._suspended.set()

    async def wait(self) -> None:
        """Return when the job is to stop."""
        await self._requested.wait()

    async def ends(self, work: Coroutine[Any, Any, None]) -> None:
        """Await ``work``, which is cancelled when the job is to stop."""
        working, stopping = asyncio.create_task(work), asyncio.create_task(self.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        if not working.cancelled():
            working.result()

    async def requested_within(self, seconds: float) -> bool:
        """Wait at most ``seconds``; return whether the job is to stop."""
        return await _set_within(self._requested, seconds)

    async def suspended_within(self, seconds: float) -> bool:
        """Wait at most ``seconds``; return whether the job is suspended."""
        return await _set_within(self._suspended, seconds)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:  # Python 3.11's `wait_for` forgets a cancellation that comes with the event
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
