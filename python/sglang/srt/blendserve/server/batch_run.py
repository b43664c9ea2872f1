"""One open batch: from its input to its result files, through any number of restarts."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

from sglang.srt.blendserve.answering.answering import Answering
from sglang.srt.blendserve.answering.engine import Engine
from sglang.srt.blendserve.answering.line_source import Interrupted, LineSource, Scan, scan
from sglang.srt.blendserve.answering.patience import Patience, Suspended
from sglang.srt.blendserve.answering.slot_pool import SlotPool
from sglang.srt.blendserve.batch_file.types import BatchFileError, Endpoint, ErrorCode, LineError
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.server.api_errors import reason_of
from sglang.srt.blendserve.server.finalizing import finalize
from sglang.srt.blendserve.server.result_files import ResultFiles, write_results
from sglang.srt.blendserve.store import batch_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.content import ContentWriter
from sglang.srt.blendserve.store.ids import job_of
from sglang.srt.blendserve.store.journal import ResultJournal
from sglang.srt.blendserve.store.objects import Outcome
from sglang.srt.blendserve.store.store import Store, now

logger = logging.getLogger(__name__)

StopReason = Literal["cancelled", "expired", "suspended"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all batches share."""

    store: Store
    engine: Engine
    pool: SlotPool
    max_requests: int


class BatchRun:
    """Carries one batch through its states. `run` is called once, in a task of its own.

    Attributes:
        broken: whether `run` ended by an error nobody had thought of.
    """

    def __init__(self, record: BatchRecord, around: Surroundings) -> None:
        self._record = record
        self._around = around
        self._workspace = around.store.workspace(record.id)
        self._patience = Patience(record.id)
        self._interrupt = threading.Event()
        self._answering: Answering | None = None
        self._stop_reason: StopReason | None = None
        self.broken = False
        self._rules = Rules(
            endpoint=Endpoint(record.endpoint),
            models=around.engine.models,
            max_lines=around.max_requests,
        )

    @property
    def expires_at(self) -> int:
        """Unix second at which the completion window ends."""
        return self._record.expires_at

    @property
    def problem(self) -> list[dict[str, Any]]:
        """Why the batch waits, in the form of ``errors.data``; empty when it does not."""
        if self.broken:
            message = "The server had an error; its log says more. The next start tries again."
            return [{"code": "server_error", "message": message, "param": None, "line": None}]
        return self._patience.as_error()

    @property
    def in_flight(self) -> int:
        """Requests in the engine."""
        return self._answering.in_flight if self._answering else 0

    def stop(self, reason: StopReason) -> None:
        """End early: cancelled or expired with the results so far, suspended to go on later.

        Called again it changes nothing, except that a server that stops suspends everything.
        """
        if self._stop_reason is None or reason == "suspended":
            self._stop_reason = reason
        if reason == "suspended":
            self._patience.end()
        self._interrupt.set()
        if self._answering:
            self._answering.stop()

    async def run(self) -> None:
        """Go on from the state the batch is in until it is in a terminal one or suspended."""
        store, journal = self._around.store, None
        try:
            journal = await self._patience.store(lambda: store.io(self._workspace.open_journal))
            outcome = await self._work(journal)
            await self._finalize(journal, outcome)
        except Suspended:
            logger.info("%s is suspended; it goes on when the server is back", self._record.id)
        finally:
            if journal is not None:
                journal.close()

    async def _work(self, journal: ResultJournal) -> Outcome:
        """Validate and answer; return the state to end in.

        Raises:
            Suspended: the server stops.
        """
        record = self._record
        if record.outcome is not None:  # finalizing when the server went down
            return record.outcome
        if record.status == "cancelling":
            return "cancelled"
        try:
            if record.status == "validating" and not await self._validate():
                return "failed"
            await self._answer(journal)
        except Interrupted:
            pass
        except (BatchFileError, OSError) as error:
            return await self._fail(error)
        if self._stop_reason == "suspended":
            raise Suspended
        return self._stop_reason or "completed"

    async def _validate(self) -> bool:
        """Read the input through once; return whether there is anything to do.

        Raises:
            BatchFileError, OSError: the input as a whole cannot be taken.
            Interrupted: `stop` was called.
        """
        found = await self._around.store.in_turn(
            lambda: scan(self._workspace.input, self._rules, self._interrupt)
        )
        await self._begin(found)
        return found.bad < found.total

    async def _begin(self, found: Scan) -> None:
        def change(db: Any) -> BatchRecord:
            errors = [error.to_batch_error() for error in found.errors]
            batch_table.set_errors(db, self._record.id, errors)
            batch_table.set_counts(db, self._record.id, found.total, self._record.tally)
            current = batch_table.get(db, self._record.id)
            assert current is not None
            if current.status == "validating" and found.bad < found.total:
                batch_table.enter(db, self._record.id, "in_progress", now())
            return batch_table.get(db, self._record.id) or current

        self._record = await self._patience.store(lambda: self._around.store.db.write(change))

    async def _answer(self, journal: ResultJournal) -> None:
        around, record = self._around, self._record
        source = LineSource(self._workspace.input, self._rules, journal.__contains__)
        self._answering = Answering(
            record.id,
            record.total,
            source,
            journal,
            store=around.store,
            engine=around.engine,
            pool=around.pool,
            patience=self._patience,
            seconds_left=lambda: record.expires_at - time.time(),
        )
        if self._stop_reason is not None:
            self._answering.stop()
        try:
            await self._answering.run()
        finally:
            source.close()

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
        await self._patience.store(
            lambda: self._around.store.db.write(
                lambda db: batch_table.set_errors(db, self._record.id, errors)
            )
        )
        return "failed"

    async def _finalize(self, journal: ResultJournal, outcome: Outcome) -> None:
        record = self._record

        def write(chosen: Outcome, output: ContentWriter, errors: ContentWriter) -> ResultFiles:
            return write_results(
                journal,
                self._workspace.input,
                self._rules,
                job_of(record.id),
                record.total,
                chosen,
                output,
                errors,
            )

        self._record = await finalize(self._around.store, record, outcome, self._patience, write)
        logger.info("%s is %s: %s", record.id, self._record.status, self._record.tally)
        await self._around.store.io(self._workspace.remove)
