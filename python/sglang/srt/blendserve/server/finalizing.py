"""End a batch: its result files in place and its last state in the database, or neither."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from sglang.srt.blendserve.answering.patience import Patience
from sglang.srt.blendserve.server.result_files import ResultFiles
from sglang.srt.blendserve.store import batch_table, file_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.content import ContentWriter
from sglang.srt.blendserve.store.ids import new_file_id
from sglang.srt.blendserve.store.objects import FileObject, Outcome
from sglang.srt.blendserve.store.store import Store, now

WriteResults = Callable[[Outcome, ContentWriter, ContentWriter], ResultFiles]
"""Writes the output and the error file of a batch with the given outcome; see `result_files`."""


async def finalize(
    store: Store, record: BatchRecord, outcome: Outcome, patience: Patience, write: WriteResults
) -> BatchRecord:
    """Write the result files and end the batch; return it as it is then.

    A crash in between is made good by calling this again: the files have the same ids, and
    content is replaced, not added. A batch that is being cancelled by the time its files are
    written ends as cancelled, with all its results.

    Args:
        outcome: the state to end in, unless an earlier try has chosen one.

    Raises:
        Suspended: the disk takes nothing and the server stops.
    """
    record = await patience.store(lambda: store.db.write(lambda db: _begin(db, record, outcome)))
    assert record.outcome is not None
    chosen, output_id, error_id = record.outcome, record.output_file_id, record.error_file_id
    assert output_id is not None
    assert error_id is not None

    def write_files() -> tuple[ResultFiles, dict[str, int]]:
        writers = [store.files.new(output_id), store.files.new(error_id)]
        try:
            results = write(chosen, *writers)
            sizes = {}
            for file_id, writer in zip((output_id, error_id), writers, strict=True):
                if writer.size:
                    writer.commit()
                    sizes[file_id] = writer.size
        finally:
            for writer in writers:
                writer.discard()
        return results, sizes

    results, sizes = await patience.store(lambda: store.io(write_files))
    return await patience.store(
        lambda: store.db.write(lambda db: _end(db, record.id, results, sizes))
    )


def _begin(db: sqlite3.Connection, record: BatchRecord, outcome: Outcome) -> BatchRecord:
    """Choose the outcome and the ids of the result files, unless a try before a crash has."""
    current = _get(db, record.id)
    if current.outcome is None:
        output_id = _pending(db, f"{record.id}_output.jsonl")
        error_id = _pending(db, f"{record.id}_error.jsonl")
        batch_table.set_results(db, record.id, outcome, output_id, error_id)
        if current.status == "in_progress":
            batch_table.enter(db, record.id, "finalizing", now())
    return _get(db, record.id)


def _end(
    db: sqlite3.Connection, batch_id: str, results: ResultFiles, sizes: dict[str, int]
) -> BatchRecord:
    record = _get(db, batch_id)
    outcome = record.outcome
    assert outcome is not None
    if record.status == "cancelling" and outcome != "failed":
        outcome = "cancelled"
    keep = record.output_expires_after
    expires_at = None if keep is None else now() + keep
    kept: list[str | None] = []
    for file_id in (record.output_file_id, record.error_file_id):
        assert file_id is not None
        if file_id in sizes:
            file_table.mark_ready(db, file_id, sizes[file_id], now(), expires_at)
            kept.append(file_id)
        else:
            file_table.delete(db, file_id)
            kept.append(None)
    batch_table.set_results(db, batch_id, outcome, *kept)
    batch_table.set_counts(db, batch_id, results.total, results.tally)
    batch_table.enter(db, batch_id, outcome, now())
    return _get(db, batch_id)


def _pending(db: sqlite3.Connection, filename: str) -> str:
    values: dict[str, Any] = {"bytes": 0, "created_at": now(), "purpose": "batch_output"}
    file = FileObject(id=new_file_id(), filename=filename, **values)
    file_table.insert(db, file, state="pending")
    return file.id


def _get(db: sqlite3.Connection, batch_id: str) -> BatchRecord:
    record = batch_table.get(db, batch_id)
    assert record is not None, batch_id
    return record
