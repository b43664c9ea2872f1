"""The lock that lets one server, and no second one, use a batch directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class DirectoryInUse(RuntimeError):
    """Another process holds the directory's lock."""


class DirectoryLock:
    """An exclusive ``flock`` on ``DIR/lock``, held until `release` or the end of the process.

    The kernel drops it when the process dies, however it dies, so a crash never leaves a stale
    lock. The descriptor is not inherited by child processes.
    """

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            DirectoryInUse: another process holds it.
            OSError: the lock file cannot be opened for writing.
        """
        path = directory / "lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 64, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise DirectoryInUse(
                f"the batch directory {directory} is in use by another server (process "
                f"{holder or 'unknown'}). Stop that server, or give this one a directory of its "
                "own with --batch-dir."
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back. Calling it twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
