"""The ``webhooks`` table: calls that are due, and what became of others.

A call is added in the transaction that ends its batch, so it outlives any crash. Call these inside
a function that is handed to `Database.read` or `Database.write`.
"""

from __future__ import annotations

import json
import secrets
from typing import NamedTuple

import aiosqlite

from sglang.srt.blendserve.store.batch_table import BatchRecord


class Webhook(NamedTuple):
    """A call that is due.

    Attributes:
        id: the same in every try.
        body: JSON, an event in OpenAI's form.
        created_at: when the batch ended, Unix seconds.
        tries: that have failed.
    """

    id: str
    batch_id: str
    url: str
    body: str
    created_at: int
    tries: int


async def add_for(db: aiosqlite.Connection, batch: BatchRecord, now: int) -> None:
    """Have the end of a batch told, if somebody wants to know."""
    if batch.webhook_url is None:
        return
    event_id = f"evt_{secrets.token_hex(16)}"
    body = {
        "id": event_id,
        "object": "event",
        "created_at": now,
        "type": f"batch.{batch.status}",
        "data": {"id": batch.id},
    }
    await db.execute(
        "INSERT INTO webhooks (id, batch_id, url, body, created_at, due_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (event_id, batch.id, batch.webhook_url, json.dumps(body), now, now),
    )


async def due(db: aiosqlite.Connection, now: int, limit: int) -> list[Webhook]:
    """Return calls whose time has come, the longest due first."""
    rows = await db.execute_fetchall(
        f"SELECT {', '.join(Webhook._fields)} FROM webhooks WHERE due_at <= ? "
        "ORDER BY due_at LIMIT ?",
        (now, limit),
    )
    return [Webhook(*row) for row in rows]


async def delivered(db: aiosqlite.Connection, webhook_id: str, now: int) -> None:
    """Note that a call was answered with a success."""
    await db.execute(
        "UPDATE webhooks SET due_at = NULL, delivered_at = ?, tries = tries + 1, error = NULL "
        "WHERE id = ?",
        (now, webhook_id),
    )


async def failed(db: aiosqlite.Connection, webhook_id: str, error: str, due_at: int | None) -> None:
    """Note that a call failed, and when it is tried again; None: never."""
    await db.execute(
        "UPDATE webhooks SET due_at = ?, tries = tries + 1, error = ? WHERE id = ?",
        (due_at, error, webhook_id),
    )
