"""The batch directory: everything the service must not lose.

    DIR/lock             held by the one server that uses it
    DIR/blendserve.db    files and batches (SQLite; with -wal and -shm beside it)
    DIR/files/<id>       contents of files
    DIR/batches/<id>/    input, journal and lines in the engine of each open batch (`workspace`)
    DIR/lost+found/<id>/ the same of batches that the database does not know (`lost_found`)

Nothing names a path outside DIR, so the directory can be moved or copied as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import aiosqlite

from sglang.srt.blendserve.store import batch_table, file_table
from sglang.srt.blendserve.store.database import Damaged, Database
from sglang.srt.blendserve.store.disk import ContentFolder, DirectoryLock, private_folder
from sglang.srt.blendserve.store.lost_found import LostFound
from sglang.srt.blendserve.store.objects import TERMINAL, is_batch_id, is_file_id
from sglang.srt.blendserve.store.workspace import Workspace

logger = logging.getLogger(__name__)

T = TypeVar("T")


_SMALL_BYTES = 1 << 20
"""Below that a file is read through in milliseconds."""


class StoreUnusable(RuntimeError):
    """The batch directory cannot be used; the message says why and what to do."""


def now() -> int:
    """Return the time in Unix seconds."""
    return int(time.time())


class Store:
    """The open batch directory.

    Attributes:
        directory: where it is.
        db: its database.
        files: contents of files.
        lost: what belongs to batches that the database does not know.
    """

    def __init__(self, directory: Path) -> None:
        """Open the directory, making it if need be, and clear away what a crash left.

        Raises:
            DirectoryInUse: another server uses it.
            NewerSchema: a newer version of this package wrote it.
            StoreUnusable: it cannot be written, or its database is not one.
        """
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DirectoryLock(directory)
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            self.db = Database(directory / "blendserve.db")
            self.files = ContentFolder(directory / "files")
            self._batches = private_folder(directory / "batches")
            self.lost = LostFound(directory / "lost+found")
        except Damaged as error:
            self._lock.release()
            raise _damaged(directory, error) from error
        except (OSError, sqlite3.Error) as error:
            self._lock.release()
            raise _unusable(directory, error) from error
        except BaseException:
            self._lock.release()
            raise
        self._io = ThreadPoolExecutor(max_workers=4, thread_name_prefix="batch-io")
        self._validation = ThreadPoolExecutor(1, thread_name_prefix="batch-validation")
        self._small = ThreadPoolExecutor(1, thread_name_prefix="batch-validation-small")

    def workspace(self, batch_id: str) -> Workspace:
        """Return the folder of a batch, whether it exists or not."""
        return Workspace(self._batches / batch_id)

    async def io(self, work: Callable[[], T]) -> T:
        """Run ``work``, which may block on the disk, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._io, work)

    async def in_turn(self, work: Callable[[], T], size: int) -> T:
        """Run ``work`` that reads a whole file of ``size`` bytes, one such after another: a hundred
        new batches must not take all threads from those that run. Small files have a turn of their
        own, so that they do not wait behind large ones."""
        turn = self._small if size < _SMALL_BYTES else self._validation
        return await asyncio.get_running_loop().run_in_executor(turn, work)

    async def start(self) -> None:
        """Connect to the database and finish what a crash cut short: deletions, uploads, ended
        batches. What the database does not know is kept. Call it once, before `db` is used, and
        `close` at the end."""
        await self.db.connect()
        there = await self.io(self.files.ids)
        known = await self.db.write(lambda db: self._settle(db, there))
        await self.io(lambda: self._clear(there, known))

    async def forget(self, workspace: Workspace) -> None:
        """Remove the folder of a batch that has ended, once the database's own file says so: a
        write-ahead log that is lost afterwards must not bring back a batch without its results.

        If that cannot be done now, the next start does it.
        """
        try:
            await self.db.checkpoint()
        except sqlite3.Error as error:
            logger.warning("%s stays until the next start: %s", workspace.folder, error)
        else:
            await self.io(workspace.remove)

    async def _settle(self, db: aiosqlite.Connection, there: set[str]) -> _Known:
        """Complete or drop the uploads that a crash cut short; return what the database knows.

        Args:
            there: ids whose content is in place.
        """
        for file_id in await file_table.pending_uploads(db):
            if file_id in there:
                size = self.files.path(file_id).stat().st_size
                await file_table.mark_complete(db, file_id, size)
            else:
                await file_table.delete(db, file_id)
        return _Known(await batch_table.statuses(db), await file_table.states(db))

    def _clear(self, there: set[str], known: _Known) -> None:
        self._delete(file_id for file_id in there if known.files.get(file_id) == "deleted")
        strange = [
            file_id for file_id in there if is_file_id(file_id) and file_id not in known.files
        ]
        if strange:
            logger.warning(
                "The database does not know %d of the files in %s, such as %s; they stay.",
                len(strange), self.files.path(""), min(strange),
            )  # fmt: skip
        for folder in sorted(self._batches.iterdir()):
            if not is_batch_id(folder.name):
                continue
            workspace, status = Workspace(folder), known.batches.get(folder.name)
            if status in TERMINAL or (status is None and workspace.is_bare()):
                workspace.remove()
            elif status is None:
                self.lost.take(workspace)

    async def delete_expired_files(self) -> None:
        """Delete the files whose ``expires_at`` has come."""
        expired = await self.db.write(lambda db: file_table.expire(db, now()))
        await self.io(lambda: self._delete(expired))

    def _delete(self, file_ids: Iterable[str]) -> None:
        for file_id in file_ids:
            self.files.delete(file_id)

    async def close(self) -> None:
        """Close the database and give the lock back. Calling it twice does nothing."""
        self._validation.shutdown()
        self._small.shutdown()
        self._io.shutdown()
        await self.db.close()
        self._lock.release()


class _Known(NamedTuple):
    """What the database knows: the status of each batch and the state of each file, by id."""

    batches: dict[str, str]
    files: dict[str, str]


def _damaged(directory: Path, error: Damaged) -> StoreUnusable:
    database = directory / "blendserve.db"
    return StoreUnusable(
        f"the database {database} is damaged ({error}). Put a copy of before in its place, or move "
        f"it and the files beside it away (mkdir {directory}/damaged && mv {database}* "
        f"{directory}/damaged/) and start again. Results of open batches are kept then: they come "
        f"into {directory}/lost+found, and `sglang-blendserve recover` brings them back. Uploads "
        f"and result files stay in {directory}/files."
    )


def _unusable(directory: Path, error: Exception) -> StoreUnusable:
    return StoreUnusable(
        f"the batch directory {directory} cannot be used: {error}. Make it a directory that this "
        "user may write, or name another with --batch-dir."
    )
