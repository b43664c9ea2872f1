"""One open batch: from its input to its result files, through any number of restarts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import aiosqlite

from sglang.srt.blendserve.answering.disk_retry import DiskRetry, is_short_of_files, reason_of
from sglang.srt.blendserve.answering.job import Job
from sglang.srt.blendserve.answering.line_source import InputScan, LineSource, scan
from sglang.srt.blendserve.answering.loop import AnsweringLoop
from sglang.srt.blendserve.answering.slots import SlotPool
from sglang.srt.blendserve.answering.stop import Stop, Stopped, StopReason
from sglang.srt.blendserve.answering.turns import EngineTurns
from sglang.srt.blendserve.batch_file.types import (
    BatchFileError,
    Endpoint,
    ErrorCode,
    LineError,
)
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.dispatch.job_planning import PlannedJob
from sglang.srt.blendserve.dispatch.planned_lines import PlannedLines
from sglang.srt.blendserve.job_ids import make_rid
from sglang.srt.blendserve.server.batch_input import BatchInput
from sglang.srt.blendserve.server.batch_problem import problem_of
from sglang.srt.blendserve.server.finalizing import Lines, finalize
from sglang.srt.blendserve.server.open_batch import Before, OpenBatch
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.server.users import Users
from sglang.srt.blendserve.store import batch_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.journal import ResultJournal
from sglang.srt.blendserve.store.objects import Outcome, job_of
from sglang.srt.blendserve.store.tally import Tally

logger = logging.getLogger(__name__)

T = TypeVar("T")


LEAST_PLANNED = 1024
"""Lines of a batch that is planned though the engine could take all of them at once, because others
wait for it, too. Preparing fewer takes longer than it gains: each store starts processes anew."""


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What all batches share.

    Attributes:
        users: what users may have.
        gpu_seconds: returns what a batch has used since the last call.
        lines_left: returns how many lines of all open batches, or of a user's, have no result.
    """

    store: Store
    engine: ServedEngine
    slots: SlotPool
    turns: EngineTurns
    max_requests: int
    users: Users
    lines_left: Callable[..., int]
    gpu_seconds: Callable[[str], float]


class BatchRun(OpenBatch):
    """Carries one batch through its states. `run` is called once, in a task of its own."""

    def __init__(self, record: BatchRecord, context: BatchContext) -> None:
        """Prepare to go on with a batch from the state that ``record`` has it in."""
        super().__init__(record)
        self._context, self._store = context, context.store
        self._workspace = context.store.workspace(record.id)
        self._stop = Stop()
        self._retry = DiskRetry(record.id, self._stop)
        self._found: InputScan | None = None
        self._rules = rules = Rules(
            endpoint=Endpoint(record.endpoint),
            models=context.engine.models,
            max_lines=context.max_requests,
        )
        self._input = BatchInput(self._workspace, rules)

    @property
    def problem(self) -> list[dict[str, Any]]:
        """Why the batch waits, in the form of ``errors.data``; empty when it does not."""
        return problem_of(self._retry.problem, broken=self.broken)

    def stop(self, reason: StopReason) -> None:
        """End early: cancelled or expired with the results so far, suspended to go on later.

        Called again it changes nothing, except that a server that stops suspends everything.
        """
        self._stop.request(reason)

    def change(self, record: BatchRecord) -> None:
        """Go by the priority, and by whether it is paused, that ``record`` has."""
        self._priority = record.priority
        self._pause.set(paused=record.paused_at is not None)
        self._tell_source()

    def _tell_source(self) -> None:
        if isinstance(self._source, PlannedLines):
            self._source.paused = self._pause.paused

    async def run(self) -> None:
        """Go on from the state the batch is in until it is in a terminal one or suspended."""
        self._context.turns.join(job_of(self._record.id))
        try:
            journal = await self._retry.persist(
                lambda: self._store.io(self._workspace.open_journal)
            )
            self._journal = journal
            outcome = await self._work(journal)
            await self._finalize(journal, outcome)
        except Stopped:
            logger.info("%s is suspended; it goes on when the server is back", self._record.id)
        finally:
            self._context.turns.ordinary_done(job_of(self._record.id))

    async def _work(self, journal: ResultJournal) -> Outcome:
        """Validate and answer; return the state to end in.

        Raises:
            Stopped: the server stops.
        """
        record = self._record
        if record.outcome is not None:  # finalizing when the server went down
            return record.outcome
        if record.status == "cancelling":
            return "cancelled"
        try:
            if record.status == "validating":
                if not await self._validate():
                    return "failed"
            else:
                await self._read(lambda: self._input.check(record.total))
            await self._answer(journal)
        except Stopped:
            pass
        except (BatchFileError, OSError) as error:
            return await self._fail(error)
        reason = self._stop.reason
        if reason == "suspended":
            raise Stopped
        return "completed" if reason is None else cast(Outcome, reason)

    async def _validate(self) -> bool:
        """Read the input through once; return whether there is anything to do.

        Raises:
            BatchFileError, OSError: the input as a whole cannot be taken, or its user may not have
                so many open requests.
            Stopped: `stop` was called.
        """
        found = self._found = await self._scan()
        requests = self._context.lines_left(self.owner) + found.total - found.bad
        if (message := self._context.users.over_quota(self.owner, requests)) is not None:
            raise BatchFileError(LineError(code=ErrorCode.QUOTA_EXCEEDED, message=message))
        self._found_lines = found.total  # at once, for others that are checked meanwhile
        await self._begin(found)
        return found.bad < found.total

    async def _scan(self) -> InputScan:
        return await self._read(lambda: scan(self._input.read(), stop=self._stop))

    async def _read(self, work: Callable[[], T]) -> T:
        """Return what ``work`` finds in the input, in turn with other batches."""
        size = await self._store.io(self._workspace.input_bytes)
        found = await self._retry.persist(
            lambda: self._store.in_turn(work, size), again=is_short_of_files
        )
        await self._retry.persist(lambda: self._store.io(self._input.note))
        return found

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await self._retry.persist(lambda: self._store.io(work), again=is_short_of_files)

    async def _read_off_loop(self, work: Callable[[], T]) -> T:
        """As `_off_loop`, not by the few threads that write results down: it may wait for the
        planner."""
        return await self._retry.persist(lambda: asyncio.to_thread(work), again=is_short_of_files)

    async def _begin(self, found: InputScan) -> None:
        async def change(db: aiosqlite.Connection) -> BatchRecord:
            errors = [error.to_batch_error() for error in found.errors]
            await batch_table.set_errors(db, self._record.id, errors)
            await batch_table.set_counts(db, self._record.id, found.total, self._record.tally)
            await batch_table.set_output_caps(db, self._record.id, found.output_caps)
            current = await batch_table.get_batch(db, self._record.id)
            if current.status == "validating" and found.bad < found.total:
                await batch_table.enter(db, self._record.id, "in_progress", now())
            return await batch_table.get_batch(db, self._record.id)

        self._record = await self._retry.persist(lambda: self._store.db.write(change))

    async def _answer(self, journal: ResultJournal) -> None:
        """Answer the lines that have no result, until they have or `stop` is called.

        Raises:
            BatchFileError, OSError: the input cannot be read on.
            Stopped: the disk takes no results and the server stops.
        """
        record, context = self._record, self._context
        job, counted = job_of(record.id), record.tally
        user = context.users.named(record.owner)
        size = 0 if self._found is None else self._found.last_line

        async def count() -> None:
            nonlocal counted
            self._note_time()
            if self._pause.paused and isinstance(self._source, PlannedLines):
                await self._read_off_loop(self._source.tell)
            tally = journal.tally
            if tally == counted:
                return
            await self._write_counts(tally)
            counted = tally

        engine_record = await self._retry.persist(
            lambda: self._store.io(self._workspace.open_engine_record)
        )
        self._source = await self._planned(journal) or self._input.source(journal.__contains__)
        if isinstance(self._source, PlannedLines):
            self.before = Before(self.tally, self.gpu_seconds)
        self._tell_source()
        self._loop = AnsweringLoop(
            Job(
                job,
                record.id,
                left=self.lines_left,
                rid=lambda line: make_rid(job, size if line.line <= size else 0, line.line - 1),
                seconds_left=lambda: record.expires_at - time.time(),
                priority=lambda: self._priority,
                pause=self._pause,
                user=self.owner,
                share=1.0 if user is None else user.share,
            ),
            self._source,
            journal,
            engine=context.engine,
            slots=context.slots,
            turns=context.turns,
            record=engine_record,
            stop=self._stop,
            retry=self._retry,
            off_loop=self._off_loop,
            reading=self._read_off_loop if isinstance(self._source, PlannedLines) else None,
            after_sync=count,
        )
        try:
            await self._loop.run()
        finally:
            await self._write_counts(journal.tally)
            self._loop = None
            if context.engine.planning is not None:
                await context.engine.planning.end(job)

    async def _write_counts(self, tally: Tally) -> None:
        record = self._record
        seconds = self._context.gpu_seconds(record.id)
        self._written += seconds

        async def change(db: aiosqlite.Connection) -> None:
            await batch_table.set_counts(db, record.id, record.total, tally)
            await batch_table.add_gpu_seconds(db, record.id, seconds)

        await self._retry.persist(lambda: self._store.db.write(change))

    async def _planned(self, journal: ResultJournal) -> LineSource | None:
        """Return the lines in the order of a plan over all open batches, where these are more than
        the engine takes in at once, and there can be one."""
        planning, window = self._context.engine.planning, self._context.slots.slots
        least = window if self._context.lines_left() <= window else min(window, LEAST_PLANNED - 1)
        if self._context.engine.standings():  # several: the plan keeps together what shares
            least = min(least, LEAST_PLANNED - 1)
        if planning is None or self.lines_left <= least:
            return None
        found = self._found or await self._scan()
        job = PlannedJob(
            job_of(self._record.id),
            self._workspace.input,
            self._rules,
            found.bad_lines,
            journal.__contains__,
            self._input.source,
        )
        return await planning.lines(job, self._workspace.requests, self._stop)

    async def _fail(self, error: BatchFileError | OSError) -> Outcome:
        """Note why the input cannot be taken."""
        if isinstance(error, BatchFileError):
            reason = error.error
        else:
            logger.error("%s: the input cannot be read: %s", self._record.id, error)
            reason = LineError(
                code=ErrorCode.UNREADABLE_FILE,
                message=f"The input cannot be read: {reason_of(error)}.",
                param="input_file_id",
            )
        errors = [*self._record.errors, reason.to_batch_error()]
        await self._retry.persist(
            lambda: self._store.db.write(
                lambda db: batch_table.set_errors(db, self._record.id, errors)
            )
        )
        return "failed"

    async def _finalize(self, journal: ResultJournal, outcome: Outcome) -> None:
        record = self._record
        self._record = await finalize(
            self._store,
            record,
            outcome,
            retry=self._retry,
            journal=journal,
            unanswered=self._unanswered,
        )
        logger.info("%s is %s: %s", record.id, self._record.status, self._record.tally)
        await self._store.forget(self._workspace)

    def _unanswered(self) -> Lines:
        """Yield the lines that may have no result: where they were answered in this run, those
        left of it; otherwise all. None of an input that has changed: nobody knows them."""
        self._input.check(self._record.total)
        yield from self._input.read() if self._source is None else self._source.unanswered()
