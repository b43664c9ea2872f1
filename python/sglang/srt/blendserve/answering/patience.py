"""What to do when the disk is full: wait, say so, and try again."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sglang.srt.blendserve.server.api_errors import reason_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 5.0
"""Time between two tries to write."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def is_storage_failure(error: Exception) -> bool:
    """Whether the disk is full, read-only or failing, so that trying again later may help."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return isinstance(error, sqlite3.OperationalError)


class Suspended(Exception):
    """The server stops; the batch goes on when it is back."""


class Patience:
    """Repeats writes of one batch until they succeed.

    Attributes:
        problem: why the batch waits, None when it does not.
    """

    def __init__(self, name: str) -> None:
        self.problem: str | None = None
        self._name = name
        self._fine = asyncio.Event()
        self._fine.set()
        self._ended = asyncio.Event()

    async def store(self, write: Callable[[], Awaitable[T]]) -> T:
        """Return what ``write`` returns; while the disk takes nothing, try every few seconds.

        Raises:
            Suspended: `end` was called meanwhile.
        """
        while True:
            try:
                result = await write()
            except (OSError, sqlite3.Error) as error:
                if not is_storage_failure(error):
                    raise
                if self.problem is None:
                    logger.error("%s waits, its directory takes no data: %s", self._name, error)
                self.problem = reason_of(error)
                self._fine.clear()
            else:
                if self.problem is not None:
                    logger.info("%s goes on", self._name)
                self.problem = None
                self._fine.set()
                return result
            await self._rest()

    async def wait_until_fine(self) -> None:
        """Return as soon as nothing waits to be written again."""
        await self._fine.wait()

    def end(self) -> None:
        """Give up waiting: the server stops."""
        self._ended.set()

    def as_error(self) -> list[dict[str, Any]]:
        """Return the problem in the form of a batch's ``errors.data``; empty if there is none."""
        if self.problem is None:
            return []
        message = (
            f"The batch waits: its directory cannot be written ({self.problem}). It goes on by "
            "itself when that is put right; no result is lost."
        )
        return [{"code": "storage_unavailable", "message": message, "param": None, "line": None}]

    async def _rest(self) -> None:
        try:
            await asyncio.wait_for(self._ended.wait(), RETRY_SECONDS)
        except TimeoutError:
            return
        raise Suspended
