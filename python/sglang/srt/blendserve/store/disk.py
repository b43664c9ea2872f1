"""What the batch directory asks of the disk: files that are whole or not there, and one user.

Everything here blocks: it runs on `Store.io`'s threads, or before the server serves.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

_PART = ".part"


def sync_directory(path: Path) -> None:
    """Make renames and links in ``path`` survive a crash of the machine."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_private(path: Path, flags: int) -> int:
    """Open or create a file that only its owner may read; a file that is there becomes so.

    Args:
        flags: those of `os.open`, besides ``O_CREAT`` and ``O_CLOEXEC``.

    Returns:
        A file descriptor.

    Raises:
        OSError: it cannot be opened.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_mode & 0o077:
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner may enter, if need be; one that is there becomes so.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    if os.stat(path).st_mode & 0o077:
        os.chmod(path, 0o700)
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Make a file that has all of ``content`` after any crash, or is as it was.

    Raises:
        OSError: the disk is full.
    """
    writer = ContentWriter(path)
    try:
        writer.write(content)
        writer.commit()
    finally:
        writer.discard()


class ContentWriter:
    """Content on its way in, under a temporary name until `commit`.

    Attributes:
        size: bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + _PART)
        fd = open_private(self._part, os.O_WRONLY | os.O_TRUNC)
        self._stream: BinaryIO = open(fd, "wb")  # noqa: SIM115 - closed by commit/discard
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        self._stream.write(data)
        self.size += len(data)

    def commit(self) -> None:
        """Put the content in place under its own name, synced to the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        os.replace(self._part, self._path)
        sync_directory(self._path.parent)

    def discard(self) -> None:
        """Throw away what was written. After `commit` this does nothing."""
        try:
            self._stream.close()
        except OSError:  # what was buffered did not fit on the disk
            pass
        finally:
            self._part.unlink(missing_ok=True)


class ContentFolder:
    """The folder ``files``: one file for each id. Ids must have been checked before."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``; what a crash left half written is removed."""
        self._directory = directory
        private_folder(directory)
        for part in directory.glob(f"*{_PART}"):
            part.unlink()

    def path(self, file_id: str) -> Path:
        """Return where the content of ``file_id`` is or will be."""
        return self._directory / file_id

    def new(self, file_id: str) -> ContentWriter:
        """Return a writer of the content of ``file_id``."""
        return ContentWriter(self.path(file_id))

    def delete(self, file_id: str) -> None:
        """Remove the content, if it is there."""
        self.path(file_id).unlink(missing_ok=True)

    def ids(self) -> set[str]:
        """Return the ids whose content is there."""
        return {entry.name for entry in os.scandir(self._directory)}


class DirectoryInUse(RuntimeError):
    """The directory's lock is held by another process."""


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
