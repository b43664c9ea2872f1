"""The tables of the batch directory's SQLite database, as a list of migrations.

A migration that has been released is never edited: a change is a new one at the end.
``PRAGMA user_version`` counts those applied.
"""

from __future__ import annotations

import sqlite3

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
)


class NewerSchema(RuntimeError):
    """The database was written by a newer version of this package."""


def migrate(connection: sqlite3.Connection) -> None:
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
