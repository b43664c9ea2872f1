"""What to do when the disk is full: wait, say so, and try again."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sglang.srt.blendserve.answering.stop import Stop, Stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 5.0
"""Time between two tries to write."""

_SHORT_OF_FILES = {errno.EMFILE, errno.ENFILE}
_DISK_ERRORS = _SHORT_OF_FILES | {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}


def is_storage_failure(error: Exception) -> bool:
    """Whether the disk is full, read-only or failing, or there are no file descriptors left, so
    that trying again later may help."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return isinstance(error, sqlite3.OperationalError)


def is_short_of_files(error: Exception) -> bool:
    """Whether the process or the machine has too many files open, which says nothing about the
    file that was to be opened."""
    return isinstance(error, OSError) and error.errno in _SHORT_OF_FILES


def reason_of(error: Exception) -> str:
    """Return what went wrong without the path, which is no business of a client's."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


class DiskRetry:
    """Repeats the writes of one job until they succeed.

    Attributes:
        problem: why the job waits, None when it does not.
    """

    def __init__(self, name: str, stop: Stop) -> None:
        """Repeat the writes of the job that ``name`` stands for in the server's log."""
        self.problem: str | None = None
        self._name, self._stop = name, stop
        self._fine = asyncio.Event()
        self._fine.set()

    async def persist(
        self,
        write: Callable[[], Awaitable[T]],
        *,
        again: Callable[[Exception], bool] = is_storage_failure,
    ) -> T:
        """Return what ``write`` returns; while the disk takes nothing, try every few seconds.

        Args:
            write: what to do; it may be called any number of times.
            again: whether an `OSError` or `sqlite3.Error` is one to try again after.

        Raises:
            Stopped: the job was suspended meanwhile.
        """
        while True:
            try:
                result = await write()
            except (OSError, sqlite3.Error) as error:
                if not again(error):
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
            if await self._stop.suspended_within(RETRY_SECONDS):
                raise Stopped

    async def wait_until_fine(self) -> None:
        """Return as soon as nothing waits to be written again."""
        await self._fine.wait()
