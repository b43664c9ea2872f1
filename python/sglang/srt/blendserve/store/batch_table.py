"""The ``batches`` table: rows in, `BatchRecord` out. Functions run on the database's thread."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, cast

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

_TIMES = (
    "created_at",
    "expires_at",
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
_OPEN = tuple(sorted({"validating", "in_progress", "finalizing", "cancelling"}))


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as it is stored.

    Attributes:
        outcome: what a batch that is being finalized will be, else None.
        errors: entries of ``errors.data`` in the API's object.
        times: Unix seconds at which the batch entered each state, by the API's field name.
        tally: requests and tokens answered and synced so far.
        output_expires_after: seconds that its output and error files are kept, None: for good.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    outcome: Outcome | None
    model: str | None
    metadata: dict[str, str] | None
    errors: list[dict[str, Any]]
    times: dict[str, int | None]
    total: int
    tally: Tally
    output_file_id: str | None
    error_file_id: str | None
    output_expires_after: int | None

    @property
    def expires_at(self) -> int:
        """Unix second at which its completion window ends."""
        return cast(int, self.times["expires_at"])

    @property
    def done(self) -> bool:
        """Whether it is in a terminal state."""
        return self.status in TERMINAL

    def to_api(self) -> BatchObject:
        """Return the object that the API shows; result files appear when they are complete."""
        tally = self.tally
        return BatchObject(
            id=self.id,
            endpoint=self.endpoint,
            model=self.model,
            errors=BatchErrors(data=self.errors) if self.errors else None,
            input_file_id=self.input_file_id,
            completion_window=self.completion_window,
            status=self.status,
            output_file_id=self.output_file_id if self.done else None,
            error_file_id=self.error_file_id if self.done else None,
            request_counts=RequestCounts(
                total=self.total, completed=tally.completed, failed=tally.failed
            ),
            usage=Usage(
                input_tokens=tally.input_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=tally.cached_tokens),
                output_tokens=tally.output_tokens,
                output_tokens_details=OutputTokensDetails(reasoning_tokens=tally.reasoning_tokens),
                total_tokens=tally.input_tokens + tally.output_tokens,
            ),
            metadata=self.metadata,
            **self.times,  # type: ignore[arg-type]
        )


def insert(
    db: sqlite3.Connection,
    *,
    batch_id: str,
    endpoint: str,
    input_file_id: str,
    completion_window: str,
    metadata: dict[str, str] | None,
    output_expires_after: int | None,
    model: str | None,
    created_at: int,
    expires_at: int,
) -> None:
    """Add a batch in the state ``validating``."""
    db.execute(
        "INSERT INTO batches (id, endpoint, input_file_id, completion_window, metadata, "
        "output_expires_after, model, status, created_at, expires_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 'validating', ?, ?)",
        (
            batch_id,
            endpoint,
            input_file_id,
            completion_window,
            None if metadata is None else json.dumps(metadata),
            output_expires_after,
            model,
            created_at,
            expires_at,
        ),
    )


def get(db: sqlite3.Connection, batch_id: str) -> BatchRecord | None:
    """Return the batch, or None when there is none."""
    row = db.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)).fetchone()
    return None if row is None else _record(row)


def page(
    db: sqlite3.Connection, *, limit: int, after: str | None
) -> tuple[list[BatchRecord], bool]:
    """Return at most ``limit`` batches, newest first, behind ``after``; and whether there are more.

    Raises:
        LookupError: ``after`` names no batch.
    """
    before = "1 = 1"
    values: list[object] = []
    if after is not None:
        row = db.execute("SELECT seq FROM batches WHERE id = ?", (after,)).fetchone()
        if row is None:
            raise LookupError(after)
        before, values = "seq < ?", [row["seq"]]
    rows = db.execute(
        f"SELECT * FROM batches WHERE {before} ORDER BY seq DESC LIMIT ?", (*values, limit + 1)
    ).fetchall()
    return [_record(row) for row in rows[:limit]], len(rows) > limit


def open_batches(db: sqlite3.Connection) -> list[BatchRecord]:
    """Return the batches that are not in a terminal state, oldest first."""
    marks = ", ".join("?" * len(_OPEN))
    rows = db.execute(
        f"SELECT * FROM batches WHERE status IN ({marks}) ORDER BY seq", _OPEN
    ).fetchall()
    return [_record(row) for row in rows]


def count_by_status(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many batches are in each state that has any."""
    return {
        row["status"]: row["number"]
        for row in db.execute("SELECT status, count(*) AS number FROM batches GROUP BY status")
    }


def enter(db: sqlite3.Connection, batch_id: str, status: BatchStatus, now: int) -> None:
    """Set the state, and its time unless it has one from before a restart."""
    stamp = f"{status}_at"
    if stamp in _TIMES:
        db.execute(
            f"UPDATE batches SET status = ?, {stamp} = coalesce({stamp}, ?) WHERE id = ?",
            (status, now, batch_id),
        )
    else:
        db.execute("UPDATE batches SET status = ? WHERE id = ?", (status, batch_id))


def set_errors(db: sqlite3.Connection, batch_id: str, errors: list[dict[str, Any]]) -> None:
    """Set ``errors.data``; an empty list shows as no errors."""
    db.execute(
        "UPDATE batches SET errors = ? WHERE id = ?",
        (json.dumps(errors) if errors else None, batch_id),
    )


def set_counts(db: sqlite3.Connection, batch_id: str, total: int, tally: Tally) -> None:
    """Set the number of requests and what has been answered."""
    db.execute(
        "UPDATE batches SET total = ?, completed = ?, failed = ?, input_tokens = ?, "
        "cached_tokens = ?, output_tokens = ?, reasoning_tokens = ? WHERE id = ?",
        (
            total,
            tally.completed,
            tally.failed,
            tally.input_tokens,
            tally.cached_tokens,
            tally.output_tokens,
            tally.reasoning_tokens,
            batch_id,
        ),
    )


def set_results(
    db: sqlite3.Connection,
    batch_id: str,
    outcome: Outcome,
    output_file_id: str | None,
    error_file_id: str | None,
) -> None:
    """Note what the batch will be once finalized, and its result files."""
    db.execute(
        "UPDATE batches SET outcome = ?, output_file_id = ?, error_file_id = ? WHERE id = ?",
        (outcome, output_file_id, error_file_id, batch_id),
    )


def _record(row: sqlite3.Row) -> BatchRecord:
    return BatchRecord(
        id=row["id"],
        endpoint=row["endpoint"],
        input_file_id=row["input_file_id"],
        completion_window=row["completion_window"],
        status=row["status"],
        outcome=row["outcome"],
        model=row["model"],
        metadata=None if row["metadata"] is None else json.loads(row["metadata"]),
        errors=[] if row["errors"] is None else json.loads(row["errors"]),
        times={name: row[name] for name in _TIMES},
        total=row["total"],
        tally=Tally(
            completed=row["completed"],
            failed=row["failed"],
            input_tokens=row["input_tokens"],
            cached_tokens=row["cached_tokens"],
            output_tokens=row["output_tokens"],
            reasoning_tokens=row["reasoning_tokens"],
        ),
        output_file_id=row["output_file_id"],
        error_file_id=row["error_file_id"],
        output_expires_after=row["output_expires_after"],
    )
