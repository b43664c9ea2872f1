"""The ``batches`` table: rows in, `BatchRecord` out.

Every function takes the database's connection: call it inside a function that is handed to
`Database.read` or `Database.write`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NamedTuple

import aiosqlite
from pydantic import BaseModel, BeforeValidator, ConfigDict

from sglang.srt.blendserve.store.objects import (
    TERMINAL,
    BatchErrors,
    BatchObject,
    BatchStatus,
    InputTokensDetails,
    Outcome,
    OutputTokensDetails,
    RequestCounts,
    Usage,
)
from sglang.srt.blendserve.store.tally import Tally

_OPEN = ("cancelling", "finalizing", "in_progress", "validating")


def _from_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


class BatchRecord(BaseModel):
    """A batch as it is stored; its fields are the table's columns.

    Attributes:
        outcome: what a batch that is being finalized will be, else None.
        errors: entries of ``errors.data`` in the API's object.
        output_expires_after: seconds that its output and error files are kept, None: for good.
        webhook_url: who is called when it has ended, None: nobody.
        owner: the user whose it is, None: the operator's.
        gpu_seconds: what it has used of the engines, as far as it is written down.
        input_bytes: size of its input.
        output_caps: most tokens that its valid lines may have as output, None: not known, or one
            has no cap.
        created_at, expires_at and all others in ``_at``: Unix seconds.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus = "validating"
    outcome: Outcome | None = None
    model: str | None
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_from_json)]
    errors: Annotated[list[dict[str, Any]], BeforeValidator(lambda v: _from_json(v) or [])] = []
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_expires_after: int | None
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    priority: int = 0
    paused_at: int | None = None
    webhook_url: str | None = None
    owner: str | None = None
    gpu_seconds: float = 0.0
    input_bytes: int = 0
    output_caps: int | None = None

    @property
    def tally(self) -> Tally:
        """Requests and tokens answered and synced so far."""
        return Tally(*(getattr(self, name) for name in Tally._fields))

    @property
    def done(self) -> bool:
        """Whether it is in a terminal state."""
        return self.status in TERMINAL

    @property
    def paused(self) -> bool:
        """Whether it sends nothing because it was told so."""
        return self.paused_at is not None and self.status in ("validating", "in_progress")

    def to_api(self) -> BatchObject:
        """Return the object that the API shows; result files appear when they are complete."""
        shown = self.model_dump()
        shown["errors"] = BatchErrors(data=self.errors) if self.errors else None
        shown["request_counts"] = RequestCounts(**shown)
        shown["usage"] = Usage(
            input_tokens=self.input_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=self.cached_tokens),
            output_tokens=self.output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self.reasoning_tokens),
            total_tokens=self.input_tokens + self.output_tokens,
        )
        if not self.paused:
            shown["paused_at"] = None
        if not self.done:
            shown["output_file_id"] = shown["error_file_id"] = None
        return BatchObject(**shown)


_STAMPS = tuple(
    name
    for name in BatchRecord.model_fields
    if name.endswith("_at") and name not in ("expires_at", "paused_at")
)
"""Columns with the time at which a state began."""


async def insert_batch(db: aiosqlite.Connection, batch: BatchRecord) -> None:
    """Add a batch."""
    values = {name: _stored(value) for name, value in batch.model_dump().items()}
    marks = ", ".join(f":{name}" for name in values)
    await db.execute(f"INSERT INTO batches ({', '.join(values)}) VALUES ({marks})", values)


async def get_batch(db: aiosqlite.Connection, batch_id: str) -> BatchRecord:
    """Return the batch.

    Raises:
        LookupError: there is none.
    """
    async with db.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)) as cursor:
        row = await cursor.fetchone()
    if row is None:
        raise LookupError(batch_id)
    return BatchRecord(**row)


async def list_batches(
    db: aiosqlite.Connection, *, limit: int, after: str | None, owner: str | None = None
) -> tuple[list[BatchRecord], bool]:
    """Return at most ``limit`` batches, newest first, behind ``after``; and whether there are more.

    ``owner``: only this user's; None: everybody's.

    Raises:
        LookupError: ``after`` names no batch.
    """
    where, values = ["1 = 1"], list[object]()
    if owner is not None:
        where.append("owner = ?")
        values.append(owner)
    if after is not None:
        own = "SELECT seq FROM batches WHERE id = ? AND (? IS NULL OR owner = ?)"
        async with db.execute(own, (after, owner, owner)) as cursor:
            row = await cursor.fetchone()
        if row is None:
            raise LookupError(after)
        where.append("seq < ?")
        values.append(row["seq"])
    rows = await db.execute_fetchall(
        f"SELECT * FROM batches WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?",
        (*values, limit + 1),
    )
    found = [BatchRecord(**row) for row in rows]
    return found[:limit], 0 < limit < len(found)


async def open_batches(db: aiosqlite.Connection) -> list[BatchRecord]:
    """Return the batches that are not in a terminal state, oldest first."""
    marks = ", ".join("?" * len(_OPEN))
    rows = await db.execute_fetchall(
        f"SELECT * FROM batches WHERE status IN ({marks}) ORDER BY seq", _OPEN
    )
    return [BatchRecord(**row) for row in rows]


async def open_requests(db: aiosqlite.Connection, owner: str) -> int:
    """Return how many requests of a user's open batches have no result, as far as is known."""
    return sum(
        max(batch.total - batch.completed - batch.failed, 0)
        for batch in await open_batches(db)
        if batch.owner == owner
    )


async def count_by_status(db: aiosqlite.Connection) -> dict[str, int]:
    """Return how many batches are in each state that has any."""
    rows = await db.execute_fetchall(
        "SELECT status, count(*) AS number FROM batches GROUP BY status"
    )
    return {row["status"]: row["number"] for row in rows}


async def statuses(db: aiosqlite.Connection) -> dict[str, str]:
    """Return the status of every batch by its id."""
    rows = await db.execute_fetchall("SELECT id, status FROM batches")
    return {row["id"]: row["status"] for row in rows}


async def enter(db: aiosqlite.Connection, batch_id: str, status: BatchStatus, now: int) -> None:
    """Set the state, and its time unless it has one from before a restart.

    A clock that was set back does not show: no state begins before the one that it comes after.
    """
    await _update(db, batch_id, status=status)
    stamp = f"{status}_at"
    if stamp in BatchRecord.model_fields:
        earlier = ", ".join(f"coalesce({name}, 0)" for name in _STAMPS)
        await db.execute(
            f"UPDATE batches SET {stamp} = coalesce({stamp}, max(?, {earlier})) WHERE id = ?",
            (now, batch_id),
        )


async def set_order(
    db: aiosqlite.Connection, batch_id: str, priority: int, paused_at: int | None
) -> None:
    """Set the priority, and since when the batch is paused."""
    await _update(db, batch_id, priority=priority, paused_at=paused_at)


async def set_errors(db: aiosqlite.Connection, batch_id: str, errors: list[dict[str, Any]]) -> None:
    """Set ``errors.data``; an empty list shows as no errors."""
    await _update(db, batch_id, errors=errors)


async def set_counts(db: aiosqlite.Connection, batch_id: str, total: int, tally: Tally) -> None:
    """Set the number of requests and what has been answered."""
    await _update(db, batch_id, total=total, **tally._asdict())


async def set_output_caps(db: aiosqlite.Connection, batch_id: str, tokens: int | None) -> None:
    """Set how long all outputs may be."""
    await _update(db, batch_id, output_caps=tokens)


async def add_gpu_seconds(db: aiosqlite.Connection, batch_id: str, seconds: float) -> None:
    """Note what a batch has used of the engines since the last time."""
    await db.execute(
        "UPDATE batches SET gpu_seconds = gpu_seconds + ? WHERE id = ?", (seconds, batch_id)
    )


class EndedBatch(NamedTuple):
    """What a batch that was completed has cost.

    Attributes:
        gpu_seconds: of the engines.
        input_bytes, output_caps: as of `BatchRecord`.
        tally: what was answered.
    """

    endpoint: str
    gpu_seconds: float
    input_bytes: int
    tally: Tally
    output_caps: int | None = None


async def last_completed(db: aiosqlite.Connection) -> list[EndedBatch]:
    """Return the last 50 batches that were completed and of which it is known what they cost."""
    rows = await db.execute_fetchall(
        f"SELECT endpoint, gpu_seconds, input_bytes, output_caps, {', '.join(Tally._fields)} "
        "FROM batches WHERE status = 'completed' AND gpu_seconds > 0 AND input_bytes > 0 "
        "ORDER BY seq DESC LIMIT 50"
    )
    return [
        EndedBatch(endpoint, gpu_seconds, input_bytes, Tally(*tally), output_caps)
        for endpoint, gpu_seconds, input_bytes, output_caps, *tally in map(tuple, rows)
    ]


async def set_results(
    db: aiosqlite.Connection,
    batch_id: str,
    outcome: Outcome,
    output_file_id: str | None,
    error_file_id: str | None,
) -> None:
    """Note what the batch will be once finalized, and its result files."""
    await _update(
        db, batch_id, outcome=outcome, output_file_id=output_file_id, error_file_id=error_file_id
    )


async def _update(db: aiosqlite.Connection, batch_id: str, **columns: Any) -> None:
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    values = {name: _stored(value) for name, value in columns.items()}
    await db.execute(f"UPDATE batches SET {changes} WHERE id = :id", values | {"id": batch_id})


def _stored(value: Any) -> Any:
    """Return a value as the table holds it: objects and lists as JSON, an empty list as NULL."""
    if isinstance(value, (dict, list)):
        return None if value == [] else json.dumps(value)
    return value
