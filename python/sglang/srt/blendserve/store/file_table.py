"""The ``files`` table: rows in, `FileObject` out.

Every function takes the database's connection: call it inside a function that is handed to
`Database.read` or `Database.write`.
"""

from __future__ import annotations

from typing import Literal

import aiosqlite

from sglang.srt.blendserve.store.objects import FileObject


async def insert_file(
    db: aiosqlite.Connection, file: FileObject, *, state: Literal["pending", "ready"]
) -> None:
    """Add a file: ``ready`` when its content is in place, ``pending`` when it is about to be."""
    await db.execute(
        "INSERT INTO files (id, purpose, filename, bytes, created_at, expires_at, owner, state) "
        "VALUES (:id, :purpose, :filename, :bytes, :created_at, :expires_at, :owner, :state)",
        file.model_dump() | {"owner": file.owner, "state": state},
    )


async def mark_ready(
    db: aiosqlite.Connection, file_id: str, size: int, now: int, expires_at: int | None
) -> None:
    """Make a pending file visible: its content of ``size`` bytes is in place since ``now``."""
    await db.execute(
        "UPDATE files SET state = 'ready', bytes = ?, created_at = ?, expires_at = ? WHERE id = ?",
        (size, now, expires_at, file_id),
    )


async def get_file(db: aiosqlite.Connection, file_id: str, now: int) -> FileObject | None:
    """Return the file, or None when there is none, or it is deleted, expired or still pending."""
    async with db.execute(
        "SELECT * FROM files WHERE id = ? AND state = 'ready' "
        "AND (expires_at IS NULL OR expires_at > ?)",
        (file_id, now),
    ) as cursor:
        row = await cursor.fetchone()
    return None if row is None else FileObject(**row)


async def list_files(
    db: aiosqlite.Connection,
    *,
    now: int,
    limit: int,
    after: str | None,
    order: Literal["asc", "desc"],
    purpose: str | None,
    owner: str | None = None,
) -> tuple[list[FileObject], bool]:
    """Return at most ``limit`` files behind the file ``after``, and whether there are more.

    ``owner``: only this user's; None: everybody's.

    Raises:
        LookupError: ``after`` names no file that ever was.
    """
    where = ["state = 'ready'", "(expires_at IS NULL OR expires_at > ?)"]
    values: list[object] = [now]
    for column, value in (("purpose", purpose), ("owner", owner)):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    if after is not None:
        where.append("seq > ?" if order == "asc" else "seq < ?")
        values.append(await _sequence(db, after, owner))
    rows = await db.execute_fetchall(
        f"SELECT * FROM files WHERE {' AND '.join(where)} "
        f"ORDER BY seq {'ASC' if order == 'asc' else 'DESC'} LIMIT ?",
        (*values, limit + 1),
    )
    found = [FileObject(**row) for row in rows]
    return found[:limit], 0 < limit < len(found)


async def delete(db: aiosqlite.Connection, file_id: str) -> None:
    """Forget a file; its row stays for the batches that name it."""
    await db.execute("UPDATE files SET state = 'deleted' WHERE id = ?", (file_id,))


async def expire(db: aiosqlite.Connection, now: int) -> list[str]:
    """Mark files whose time has come as deleted; return their ids."""
    rows = await db.execute_fetchall(
        "UPDATE files SET state = 'deleted' WHERE state = 'ready' AND expires_at <= ? RETURNING id",
        (now,),
    )
    return [row["id"] for row in rows]


async def pending_uploads(db: aiosqlite.Connection) -> list[str]:
    """Return the ids of files that were about to be in place and are no batch's results."""
    rows = await db.execute_fetchall(
        "SELECT id FROM files WHERE state = 'pending' AND id NOT IN "
        "(SELECT output_file_id FROM batches WHERE output_file_id IS NOT NULL UNION "
        "SELECT error_file_id FROM batches WHERE error_file_id IS NOT NULL)"
    )
    return [row["id"] for row in rows]


async def mark_complete(db: aiosqlite.Connection, file_id: str, size: int) -> None:
    """Make a pending file visible whose content of ``size`` bytes was in place at a crash."""
    await db.execute("UPDATE files SET state = 'ready', bytes = ? WHERE id = ?", (size, file_id))


async def states(db: aiosqlite.Connection) -> dict[str, str]:
    """Return the state of every file by its id; the content of a deleted one may still be there
    after a crash."""
    rows = await db.execute_fetchall("SELECT id, state FROM files")
    return {row["id"]: row["state"] for row in rows}


async def _sequence(db: aiosqlite.Connection, file_id: str, owner: str | None) -> int:
    own = "SELECT seq FROM files WHERE id = ? AND (? IS NULL OR owner = ?)"
    async with db.execute(own, (file_id, owner, owner)) as cursor:
        row = await cursor.fetchone()
    if row is None:
        raise LookupError(file_id)
    return int(row["seq"])
