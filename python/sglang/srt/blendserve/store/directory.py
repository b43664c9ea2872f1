"""The batch directory: everything the service must not lose.

    DIR/lock             held by the one server that uses it
    DIR/blendserve.db    files and batches (SQLite; with -wal and -shm beside it)
    DIR/files/<id>       contents of files
    DIR/batches/<id>/    input, result journal and record of lines in the engine of each open batch

Nothing names a path outside DIR, so the directory can be moved or copied as a whole.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import aiosqlite

from sglang.srt.blendserve.store import batch_table, file_table
from sglang.srt.blendserve.store.database import Database
from sglang.srt.blendserve.store.disk import ContentFolder, DirectoryLock, sync_directory
from sglang.srt.blendserve.store.engine_record import EngineRecord
from sglang.srt.blendserve.store.journal import ResultJournal
from sglang.srt.blendserve.store.objects import is_batch_id

T = TypeVar("T")


class StoreUnusable(RuntimeError):
    """The batch directory cannot be used; the message says why and what to do."""


def now() -> int:
    """Return the time in Unix seconds."""
    return int(time.time())


class Workspace:
    """The folder ``batches/<id>`` of one open batch.

    The input is a hard link to the uploaded file's content: deleting the file, through the API
    or when it expires, leaves the batch what it needs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def input(self) -> Path:
        """The batch's input lines."""
        return self.folder / "input.jsonl"

    @property
    def journal(self) -> Path:
        """The batch's results so far; see `journal.ResultJournal`."""
        return self.folder / "results.journal"

    @property
    def engine_record(self) -> Path:
        """Which lines are in the engine; see `engine_record.EngineRecord`."""
        return self.folder / "engine.record"

    def create(self, content: Path) -> None:
        """Make the folder, with ``content`` as its input.

        Raises:
            OSError: the content is not there, or the disk is full; no folder is left.
        """
        self.folder.mkdir(mode=0o700)
        try:
            try:
                os.link(content, self.input)
            except PermissionError:  # a file system without hard links
                shutil.copyfile(content, self.input)
                with open(self.input, "rb+") as copied:
                    os.fsync(copied.fileno())
            sync_directory(self.folder)
            sync_directory(self.folder.parent)
        except BaseException:
            self.remove()
            raise

    def open_journal(self) -> ResultJournal:
        """Return the journal of results.

        Raises:
            OSError: it cannot be read or written.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)  # if someone removed it, the input is missing
        return ResultJournal(self.journal)

    def open_engine_record(self) -> EngineRecord:
        """Return the record of lines in the engine.

        Raises:
            OSError: it cannot be read or written.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        return EngineRecord(self.engine_record)

    def remove(self) -> None:
        """Remove the folder, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Store:
    """The open batch directory.

    Attributes:
        directory: where it is.
        db: its database.
        files: contents of files.
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
            self._batches = directory / "batches"
            self._batches.mkdir(mode=0o700, exist_ok=True)
        except (OSError, sqlite3.Error) as error:
            self._lock.release()
            raise _unusable(directory, error) from error
        except BaseException:
            self._lock.release()
            raise
        self._io = ThreadPoolExecutor(max_workers=4, thread_name_prefix="batch-io")
        self._validation = ThreadPoolExecutor(1, thread_name_prefix="batch-validation")

    def workspace(self, batch_id: str) -> Workspace:
        """Return the folder of a batch, whether it exists or not."""
        return Workspace(self._batches / batch_id)

    async def io(self, work: Callable[[], T]) -> T:
        """Run ``work``, which may block on the disk, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._io, work)

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Run ``work`` that validates a whole file, one such after another: a hundred new batches
        must not take all threads from those that run."""
        return await asyncio.get_running_loop().run_in_executor(self._validation, work)

    async def start(self) -> None:
        """Connect to the database, finish deletions, and drop uploads and workspaces that a crash
        cut short. Call it once, before `db` is used, and `close` at the end."""
        await self.db.connect()
        open_ids, gone = await self.db.write(_settle)

        def clear() -> None:
            self._delete(self.files.ids() & gone)
            for folder in self._batches.iterdir():
                if is_batch_id(folder.name) and folder.name not in open_ids:
                    Workspace(folder).remove()

        await self.io(clear)

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
        self._io.shutdown()
        await self.db.close()
        self._lock.release()


async def _settle(db: aiosqlite.Connection) -> tuple[set[str], set[str]]:
    """Return ids of the open batches, and of files whose content must go."""
    await db.execute(
        "UPDATE files SET state = 'deleted' WHERE state = 'pending' AND id NOT IN "
        "(SELECT output_file_id FROM batches WHERE output_file_id IS NOT NULL UNION "
        "SELECT error_file_id FROM batches WHERE error_file_id IS NOT NULL)"
    )
    open_ids = {batch.id for batch in await batch_table.open_batches(db)}
    return open_ids, set(await file_table.deleted_ids(db))


def _unusable(directory: Path, error: Exception) -> StoreUnusable:
    return StoreUnusable(
        f"the batch directory {directory} cannot be used: {error}. Make it a directory that this "
        "user may write, or name another with --batch-dir."
    )
