"""The ``files`` table: rows in, `FileObject` out.

Every function takes the database's connection and runs on its thread: call it inside a function
that is handed to `Database.read` or `Database.write`.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

from sglang.srt.blendserve.store.objects import FileObject


def insert(db: sqlite3.Connection, file: FileObject, *, state: Literal["pending", "ready"]) -> None:
    """Add a file: ``ready`` when its content is in place, ``pending`` when it is about to be."""
    db.execute(
        "INSERT INTO files (id, purpose, filename, bytes, created_at, expires_at, state) "
        "VALUES (:id, :purpose, :filename, :bytes, :created_at, :expires_at, :state)",
        file.model_dump() | {"state": state},
    )


def mark_ready(
    db: sqlite3.Connection, file_id: str, size: int, now: int, expires_at: int | None
) -> None:
    """Make a pending file visible: its content of ``size`` bytes is in place since ``now``."""
    db.execute(
        "UPDATE files SET state = 'ready', bytes = ?, created_at = ?, expires_at = ? WHERE id = ?",
        (size, now, expires_at, file_id),
    )


def get(db: sqlite3.Connection, file_id: str, now: int) -> FileObject | None:
    """Return the file, or None when there is none, or it is deleted, expired or still pending."""
    row = db.execute(
        "SELECT * FROM files WHERE id = ? AND state = 'ready' "
        "AND (expires_at IS NULL OR expires_at > ?)",
        (file_id, now),
    ).fetchone()
    return None if row is None else FileObject(**row)


def list_page(
    db: sqlite3.Connection,
    *,
    now: int,
    limit: int,
    after: str | None,
    order: Literal["asc", "desc"],
    purpose: str | None,
) -> tuple[list[FileObject], bool]:
    """Return at most ``limit`` files behind the file ``after``, and whether there are more.

    Raises:
        LookupError: ``after`` names no file that ever was.
    """
    where = ["state = 'ready'", "(expires_at IS NULL OR expires_at > ?)"]
    values: list[object] = [now]
    if purpose is not None:
        where.append("purpose = ?")
        values.append(purpose)
    if after is not None:
        where.append("seq > ?" if order == "asc" else "seq < ?")
        values.append(_sequence(db, after))
    rows = db.execute(
        f"SELECT * FROM files WHERE {' AND '.join(where)} "
        f"ORDER BY seq {'ASC' if order == 'asc' else 'DESC'} LIMIT ?",
        (*values, limit + 1),
    ).fetchall()
    return [FileObject(**row) for row in rows[:limit]], len(rows) > limit


def delete(db: sqlite3.Connection, file_id: str) -> None:
    """Forget a file; its row stays for the batches that name it."""
    db.execute("UPDATE files SET state = 'deleted' WHERE id = ?", (file_id,))


def expire(db: sqlite3.Connection, now: int) -> list[str]:
    """Mark files whose time has come as deleted; return their ids."""
    rows = db.execute(
        "UPDATE files SET state = 'deleted' WHERE state = 'ready' AND expires_at <= ? RETURNING id",
        (now,),
    ).fetchall()
    return [row["id"] for row in rows]


def deleted_ids(db: sqlite3.Connection) -> list[str]:
    """Return the ids of deleted files, whose content may still be there after a crash."""
    return [row["id"] for row in db.execute("SELECT id FROM files WHERE state = 'deleted'")]


def _sequence(db: sqlite3.Connection, file_id: str) -> int:
    row = db.execute("SELECT seq FROM files WHERE id = ?", (file_id,)).fetchone()
    if row is None:
        raise LookupError(file_id)
    return int(row["seq"])
