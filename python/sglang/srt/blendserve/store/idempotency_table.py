"""The ``idempotency_keys`` table: which batch an ``Idempotency-Key`` has created.

Call these inside a function that is handed to `Database.read` or `Database.write`.
"""

from __future__ import annotations

import aiosqlite

KEPT_SECONDS = 7 * 86400
"""How long a key is known."""


async def find(db: aiosqlite.Connection, key: str, now: int) -> tuple[str, str] | None:
    """Return what a key was used for: the request's digest and the batch's id; None: nothing."""
    async with db.execute(
        "SELECT request, batch_id FROM idempotency_keys WHERE key = ? AND created_at > ?",
        (key, now - KEPT_SECONDS),
    ) as cursor:
        row = await cursor.fetchone()
    return None if row is None else (row["request"], row["batch_id"])


async def add(db: aiosqlite.Connection, key: str, request: str, batch_id: str, now: int) -> None:
    """Note that a key has created a batch, and forget those whose time has passed.

    Raises:
        sqlite3.IntegrityError: the key is known.
    """
    oldest = now - KEPT_SECONDS
    await db.execute("DELETE FROM idempotency_keys WHERE created_at <= ?", (oldest,))
    await db.execute(
        "INSERT INTO idempotency_keys (key, request, batch_id, created_at) VALUES (?, ?, ?, ?)",
        (key, request, batch_id, now),
    )
