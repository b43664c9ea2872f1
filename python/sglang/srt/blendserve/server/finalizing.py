"""End a batch: its result files in place and its last state in the database, or neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import aiosqlite

from sglang.srt.blendserve.answering.disk_retry import DiskRetry
from sglang.srt.blendserve.answering.result_log import refused
from sglang.srt.blendserve.batch_file.types import BatchFileError, BatchLine, ErrorCode, LineError
from sglang.srt.blendserve.store import batch_table, file_table, webhook_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.disk import ContentWriter
from sglang.srt.blendserve.store.journal import ResultJournal
from sglang.srt.blendserve.store.objects import FileObject, Outcome, job_of, new_file_id
from sglang.srt.blendserve.store.tally import Tally

_UNANSWERED: dict[Outcome, tuple[ErrorCode, str]] = {
    "expired": (
        ErrorCode.BATCH_EXPIRED,
        "This request could not be executed before the completion window expired.",
    ),
    "cancelled": (
        ErrorCode.BATCH_CANCELLED,
        "The batch was cancelled before this request was executed.",
    ),
    "failed": (
        ErrorCode.UNREADABLE_FILE,
        "The batch failed before this request was executed.",
    ),
}

_ABANDONED = {
    "code": "server_error",
    "message": "The result files could not be written; the server's log says why. Results the "
    "batch had are kept in lost+found of the batch directory.",
    "param": None,
    "line": None,
}

_GROUP = 1000
"""Lines without an answer that are written to the journal together."""

Lines = Iterator[BatchLine | LineError]


class FinalCounts(NamedTuple):
    """What a batch came to: requests in all, and the sum over their result lines."""

    total: int
    tally: Tally


async def finalize(
    store: Store,
    record: BatchRecord,
    outcome: Outcome,
    *,
    retry: DiskRetry,
    journal: ResultJournal,
    unanswered: Callable[[], Lines],
) -> BatchRecord:
    """Write the result files and end the batch; return it as it is then.

    A crash in between is made good by calling this again: the files have the same ids, and
    content is replaced, not added. A batch that is being cancelled by the time its files are
    written ends as cancelled, with all its results.

    Args:
        outcome: the state to end in, unless an earlier try has chosen one.
        retry: repeats what the disk does not take.
        journal: results so far.
        unanswered: yields the lines of the input that have none, and maybe others; may be called
            again.

    Raises:
        Stopped: the disk takes nothing and the server stops.
    """
    record = await retry.persist(lambda: store.db.write(lambda db: _begin(db, record, outcome)))
    assert record.outcome is not None
    chosen, output_id, error_id = record.outcome, record.output_file_id, record.error_file_id
    assert output_id is not None
    assert error_id is not None

    def write_files() -> tuple[FinalCounts, dict[str, int]]:
        writers = [store.files.new(output_id), store.files.new(error_id)]
        try:
            results = write_results(
                journal, job_of(record.id), record.total, chosen, unanswered, *writers
            )
            sizes = {}
            for file_id, writer in zip((output_id, error_id), writers, strict=True):
                if writer.size:
                    writer.commit()
                    sizes[file_id] = writer.size
        finally:
            for writer in writers:
                writer.discard()
        return results, sizes

    results, sizes = await retry.persist(lambda: store.io(write_files))
    return await retry.persist(
        lambda: store.db.write(lambda db: _end(db, record.id, results, sizes))
    )


async def abandon(store: Store, batch_id: str) -> None:
    """End a batch that is being cancelled without result files, because they cannot be written.

    Its folder, with the results it has, is put aside in ``lost+found``.

    Raises:
        OSError, sqlite3.Error: the disk is full; nothing is changed.
    """

    async def change(db: aiosqlite.Connection) -> None:
        record = await batch_table.get_batch(db, batch_id)
        for file_id in (record.output_file_id, record.error_file_id):
            if file_id is not None:
                await file_table.delete(db, file_id)
        await batch_table.set_results(db, batch_id, "cancelled", None, None)
        await batch_table.set_errors(db, batch_id, [*record.errors, _ABANDONED])
        await batch_table.set_counts(db, batch_id, record.total, Tally(failed=record.total))
        await batch_table.enter(db, batch_id, "cancelled", now())
        await webhook_table.add_for(db, await batch_table.get_batch(db, batch_id), now())

    workspace = store.workspace(batch_id)
    if workspace.folder.exists():
        await store.io(lambda: store.lost.take(workspace))
    await store.db.write(change)


def write_results(
    journal: ResultJournal,
    job: str,
    total: int,
    outcome: Outcome,
    unanswered: Callable[[], Lines],
    output: ContentWriter,
    errors: ContentWriter,
) -> FinalCounts:
    """Write every result of the journal into ``output`` or ``errors``, in the input's order.

    When requests have no result, because the batch ends early, each gets an error with the reason
    first, so that every line of the input has exactly one line in one of the files. Neither file
    is committed here.

    Args:
        total: requests in the input, 0 when they have not been counted.
        outcome: the state that the batch ends in.

    Raises:
        OSError: the disk is full, or the journal is damaged.
    """
    if outcome == "failed" and not total and not len(journal):
        return FinalCounts(0, Tally())  # nobody knows what requests there were
    if not total or len(journal) < total:
        _refuse(journal, job, outcome, unanswered)
    for result in journal.results():
        (output if result.succeeded else errors).write(result.data)
    missing = max(total - len(journal), 0)  # the input was cut short from outside
    return FinalCounts(len(journal) + missing, journal.tally.plus(Tally(failed=missing)))


def _refuse(
    journal: ResultJournal, job: str, outcome: Outcome, unanswered: Callable[[], Lines]
) -> None:
    """Give each line that has no result an error in the journal."""
    try:
        for count, line in enumerate(unanswered(), start=1):
            assert line.line is not None
            if line.line not in journal:
                journal.append([refused(job, _why(line, outcome))])
            if count % _GROUP == 0:
                journal.sync()
    except (BatchFileError, FileNotFoundError):
        pass  # there is no more of the input
    journal.sync()


def _why(line: BatchLine | LineError, outcome: Outcome) -> LineError:
    if isinstance(line, LineError):
        return line
    code, message = _UNANSWERED.get(outcome, _UNANSWERED["failed"])
    return LineError(code=code, message=message, line=line.line, custom_id=line.custom_id)


async def _begin(db: aiosqlite.Connection, record: BatchRecord, outcome: Outcome) -> BatchRecord:
    """Choose the outcome and the ids of the result files, unless a try before a crash has."""
    current = await batch_table.get_batch(db, record.id)
    if current.outcome is None:
        output_id = await _pending(db, f"{record.id}_output.jsonl", record.owner)
        error_id = await _pending(db, f"{record.id}_error.jsonl", record.owner)
        await batch_table.set_results(db, record.id, outcome, output_id, error_id)
        if current.status == "in_progress":
            await batch_table.enter(db, record.id, "finalizing", now())
    return await batch_table.get_batch(db, record.id)


async def _end(
    db: aiosqlite.Connection, batch_id: str, results: FinalCounts, sizes: dict[str, int]
) -> BatchRecord:
    record = await batch_table.get_batch(db, batch_id)
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
            await file_table.mark_ready(db, file_id, sizes[file_id], now(), expires_at)
            kept.append(file_id)
        else:
            await file_table.delete(db, file_id)
            kept.append(None)
    await batch_table.set_results(db, batch_id, outcome, *kept)
    await batch_table.set_counts(db, batch_id, results.total, results.tally)
    await batch_table.enter(db, batch_id, outcome, now())
    ended = await batch_table.get_batch(db, batch_id)
    await webhook_table.add_for(db, ended, now())
    return ended


async def _pending(db: aiosqlite.Connection, filename: str, owner: str | None) -> str:
    values: dict[str, Any] = {"bytes": 0, "created_at": now(), "purpose": "batch_output"}
    values["owner"] = owner
    file = FileObject(id=new_file_id(), filename=filename, **values)
    await file_table.insert_file(db, file, state="pending")
    return file.id
