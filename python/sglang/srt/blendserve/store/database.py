"""One SQLite connection on one thread of its own, so that no query ever blocks the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sglang.srt.blendserve.store.schema import migrate

T = TypeVar("T")

Statement = Callable[[sqlite3.Connection], T]
"""A function that runs on the database's thread and may only use the connection there."""


class Database:
    """The batch directory's database. All calls run one after another, in order of call.

    WAL, ``synchronous = FULL``: when a `write` has returned, it survives a crash of the process
    and of the machine.
    """

    def __init__(self, path: Path) -> None:
        """Open the database, creating it if need be, and migrate it.

        Raises:
            sqlite3.Error: it cannot be opened or written, or is not a database.
            NewerSchema: a newer version of this package wrote it.
        """
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch-db")
        try:
            self._connection = self._thread.submit(_open, path).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def read(self, query: Statement[T]) -> T:
        """Return what ``query`` returns."""
        return await self._run(lambda: query(self._connection))

    async def write(self, change: Statement[T]) -> T:
        """Run ``change`` in one transaction, commit it to the disk, and return its result.

        Raises:
            sqlite3.OperationalError: the disk is full or read-only; nothing was changed.
        """
        return await self._run(lambda: _transact(self._connection, change))

    def close(self) -> None:
        """Finish what is queued and close the connection. Calling it twice does nothing."""
        try:
            self._thread.submit(self._connection.close).result()
        except RuntimeError:  # shut down before
            return
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _transact(connection: sqlite3.Connection, change: Statement[T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = change(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result
