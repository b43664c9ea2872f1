"""The batch directory's SQLite database: one connection, used by one coroutine at a time."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from sglang.srt.blendserve.store.disk import open_private

T = TypeVar("T")

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE files (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of creation, for paging
        id          TEXT    NOT NULL UNIQUE,
        purpose     TEXT    NOT NULL CHECK (purpose IN ('batch', 'batch_output')),
        filename    TEXT    NOT NULL,
        bytes       INTEGER NOT NULL DEFAULT 0,
        created_at  INTEGER NOT NULL,
        expires_at  INTEGER,
        -- 'pending': named by a batch that is being finalized, its content not yet in place;
        -- 'deleted': the row stays, because batches go on naming it
        state       TEXT    NOT NULL CHECK (state IN ('pending', 'ready', 'deleted'))
    );
    CREATE INDEX files_by_expiry ON files (expires_at) WHERE state = 'ready';

    CREATE TABLE batches (
        seq                  INTEGER PRIMARY KEY AUTOINCREMENT,
        id                   TEXT    NOT NULL UNIQUE,
        endpoint             TEXT    NOT NULL,
        input_file_id        TEXT    NOT NULL REFERENCES files (id),
        output_file_id       TEXT    REFERENCES files (id),
        error_file_id        TEXT    REFERENCES files (id),
        completion_window    TEXT    NOT NULL,
        metadata             TEXT,                      -- JSON object
        output_expires_after INTEGER,                   -- seconds after the output is created
        model                TEXT,
        status               TEXT    NOT NULL CHECK (status IN ('validating', 'in_progress',
            'finalizing', 'completed', 'failed', 'expired', 'cancelling', 'cancelled')),
        outcome              TEXT CHECK (outcome IN ('completed', 'failed', 'expired',
            'cancelled')),                              -- what a batch being finalized will be
        errors               TEXT,                      -- JSON array
        created_at           INTEGER NOT NULL,
        expires_at           INTEGER NOT NULL,
        in_progress_at       INTEGER,
        finalizing_at        INTEGER,
        completed_at         INTEGER,
        failed_at            INTEGER,
        expired_at           INTEGER,
        cancelling_at        INTEGER,
        cancelled_at         INTEGER,
        total                INTEGER NOT NULL DEFAULT 0,
        completed            INTEGER NOT NULL DEFAULT 0,
        failed               INTEGER NOT NULL DEFAULT 0,
        input_tokens         INTEGER NOT NULL DEFAULT 0,
        cached_tokens        INTEGER NOT NULL DEFAULT 0,
        output_tokens        INTEGER NOT NULL DEFAULT 0,
        reasoning_tokens     INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX batches_by_status ON batches (status);
    """,
    """
    ALTER TABLE batches ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN paused_at INTEGER;  -- since when it sends nothing
    """,
    """
    ALTER TABLE batches ADD COLUMN webhook_url TEXT;   -- who is called when the batch has ended

    CREATE TABLE webhooks (
        id           TEXT    PRIMARY KEY,               -- the same in every try
        batch_id     TEXT    NOT NULL REFERENCES batches (id),
        url          TEXT    NOT NULL,
        body         TEXT    NOT NULL,
        created_at   INTEGER NOT NULL,
        due_at       INTEGER,                           -- of the next try; NULL: there is none
        tries        INTEGER NOT NULL DEFAULT 0,
        delivered_at INTEGER,
        error        TEXT                               -- of the last try
    );
    CREATE INDEX webhooks_by_time ON webhooks (due_at) WHERE due_at IS NOT NULL;

    CREATE TABLE idempotency_keys (
        key        TEXT    PRIMARY KEY,
        request    TEXT    NOT NULL,                    -- digest of what was to be created
        batch_id   TEXT    NOT NULL REFERENCES batches (id),
        created_at INTEGER NOT NULL
    );
    """,
    """
    ALTER TABLE files ADD COLUMN owner TEXT;           -- name of a user; NULL: the operator's
    ALTER TABLE batches ADD COLUMN owner TEXT;
    ALTER TABLE batches ADD COLUMN gpu_seconds REAL NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN input_bytes INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE batches ADD COLUMN output_caps INTEGER; -- tokens; NULL: a line has no cap
    """,
)
"""The tables, as a list of scripts; ``PRAGMA user_version`` counts those applied. One that has been
released is never edited: a change is a new one at the end."""

Statements = Callable[[aiosqlite.Connection], Awaitable[T]]
"""A coroutine function that reads or changes by the connection it is given, and only by that."""


class Damaged(sqlite3.DatabaseError):
    """The database file is there, and what it holds is not a whole database of ours."""


class NewerSchema(RuntimeError):
    """The database was written by a newer version of this package."""


class Database:
    """The batch directory's database. All calls run one after another, in order of call.

    WAL, ``synchronous = FULL``: when a `write` has returned, it survives a crash of the process
    and of the machine.
    """

    def __init__(self, path: Path) -> None:
        """Make the database if need be, and migrate it. This needs no event loop: what is wrong
        with it shows before the model is loaded.

        Raises:
            Damaged: it is not a database, or not a whole one.
            sqlite3.Error: it cannot be opened or written.
            NewerSchema: a newer version of this package wrote it.
            OSError: the file cannot be made.
        """
        for there in (path, *_beside(path)):
            if there == path or there.exists():
                os.close(open_private(there, os.O_RDWR))
        try:
            with closing(sqlite3.connect(path, **_OPTIONS)) as connection:
                _migrate(connection)
                _check(connection)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise Damaged(str(error)) from error
        self._connection = aiosqlite.connect(path, **_OPTIONS)
        # Reads wait for it too: on the one connection they would see half of a write.
        self._turn = asyncio.Lock()

    async def connect(self) -> None:
        """Start to serve reads and writes; call it once. From here to `close` there is a thread
        that keeps the process alive."""
        await self._connection

    async def read(self, query: Statements[T]) -> T:
        """Return what ``query`` returns."""
        async with self._turn:
            return await query(self._connection)

    async def write(self, change: Statements[T]) -> T:
        """Run ``change`` in one transaction, commit it to the disk, and return its result.

        If it raises or is cancelled, nothing is changed. Only a cancellation that comes during the
        commit may find the change made.

        Raises:
            sqlite3.OperationalError: the disk is full or read-only; nothing was changed.
        """
        async with self._turn:
            try:
                await self._connection.execute("BEGIN IMMEDIATE")
                result = await change(self._connection)
                await self._connection.commit()
            except BaseException:
                # Its statements run in order of call: a cancelled one ends before this begins.
                await asyncio.shield(self._connection.rollback())
                raise
            return result

    async def checkpoint(self) -> None:
        """Put all that was written so far into the database's own file, synced: the write-ahead
        log is not needed for it any more, whatever happens to that.

        Raises:
            sqlite3.OperationalError: the disk is full, or another program reads the database.
        """
        async with self._turn:
            statement = "PRAGMA wal_checkpoint(TRUNCATE)"
            async with self._connection.execute(statement) as cursor:
                row = await cursor.fetchone()
        if row is None or row[0]:
            raise sqlite3.OperationalError("database is locked: another program reads it")

    async def close(self) -> None:
        """Finish what is queued and close the connection. Calling it twice does nothing."""
        async with self._turn:
            await self._connection.close()


class _Connection(sqlite3.Connection):
    """A connection in the database's modes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.row_factory = sqlite3.Row
        try:
            self.execute("PRAGMA journal_mode = WAL")
            self.execute("PRAGMA synchronous = FULL")
            self.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            self.close()
            raise


_OPTIONS: dict[str, Any] = {"factory": _Connection, "isolation_level": None}
"""How to connect; ``None``: `write` begins its transactions itself."""


def _beside(path: Path) -> tuple[Path, Path]:
    """Return the write-ahead log and its index, which SQLite makes with the database's mode."""
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def _check(connection: sqlite3.Connection) -> None:
    """Read the whole database through; it has about a kilobyte for each file and batch.

    Raises:
        sqlite3.DatabaseError: something is wrong with it.
    """
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(found.split()))
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if missing := {"files", "batches"} - there:
        raise sqlite3.DatabaseError(f"it has no table {min(missing)}")


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the database up to the newest schema; each migration is one transaction.

    Raises:
        NewerSchema: the database is ahead of this code, which leaves it untouched.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise NewerSchema(
            f"the batch directory's database has schema version {version}, this version of "
            f"sglang-blendserve knows {len(MIGRATIONS)}. Upgrade sglang-blendserve, or use "
            "another --batch-dir."
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.rollback()
            raise
