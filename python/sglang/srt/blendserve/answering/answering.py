"""Send a batch's lines to the engine and keep what comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.deadline_order import Demand
from sglang.srt.blendserve.answering.engine import Engine
from sglang.srt.blendserve.answering.line_source import LineSource
from sglang.srt.blendserve.answering.patience import Patience
from sglang.srt.blendserve.answering.slot_pool import SlotPool
from sglang.srt.blendserve.batch_file.results import Response, answer, refusal
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.store import batch_table
from sglang.srt.blendserve.store.ids import job_of
from sglang.srt.blendserve.store.journal import Entry, ResultJournal
from sglang.srt.blendserve.store.store import Store
from sglang.srt.blendserve.store.tally import Tally

logger = logging.getLogger(__name__)

SYNC_SECONDS = 0.5
"""Results gather this long and are then written and synced together."""

ABORT_SECONDS = 5.0
"""Time the engine gets to give up requests before nobody waits for them any more."""

_TRIES = 3


class Answering:
    """The requests of one batch that have no result yet, until they have or `stop` is called."""

    def __init__(
        self,
        batch_id: str,
        total: int,
        source: LineSource,
        journal: ResultJournal,
        *,
        store: Store,
        engine: Engine,
        pool: SlotPool,
        patience: Patience,
        seconds_left: Callable[[], float],
    ) -> None:
        self._batch_id, self._job, self._total = batch_id, job_of(batch_id), total
        self._source, self._journal = source, journal
        self._store, self._engine, self._pool = store, engine, pool
        self._patience, self._seconds_left = patience, seconds_left
        self._in_flight: set[asyncio.Task[None]] = set()
        self._answered: list[Entry] = []
        self._stopping = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests in the engine."""
        return len(self._in_flight)

    def stop(self) -> None:
        """Send nothing more and have the engine give up what it has; `run` ends in seconds."""
        self._stopping.set()

    async def run(self) -> None:
        """Answer the lines; return when each has a result that is synced, or `stop` was called.

        Raises:
            Suspended: the disk takes no results and the server stops.
            BatchFileError, OSError: the input cannot be read on; results so far are synced.
        """
        feeding = asyncio.create_task(self._feed())
        stopping = asyncio.create_task(self._stopping.wait())
        syncing = asyncio.create_task(self._sync_until(feeding))
        try:
            await asyncio.wait({syncing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            feeding.cancel()
            await self._give_up()
            await syncing
        if not feeding.cancelled() and (error := feeding.exception()):
            raise error

    async def _feed(self) -> None:
        """Start a task for each line as slots come free; return when all tasks have ended."""
        while lines := await self._store.io(self._source.next_lines):
            for line, size in lines:
                await self._patience.wait_until_fine()
                if isinstance(line, LineError):
                    self._keep(line, Tally(failed=1), refusal(self._job, line).to_json())
                    continue
                await self._pool.take(size, self._demand)
                task = asyncio.create_task(self._answer(line, size))
                self._in_flight.add(task)
                task.add_done_callback(self._in_flight.discard)
                await asyncio.sleep(0)  # online requests come in between
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    async def _answer(self, line: BatchLine, size: int) -> None:
        """Get the answer to a line and keep it, unless it was given up."""
        rid = job_ids.make_rid(self._job, 0, line.line - 1)
        try:
            for attempt in range(1, _TRIES + 1):
                try:
                    response, seen = await self._engine.execute(line, rid)
                except Exception as error:
                    logger.exception("%s: line %d failed", self._batch_id, line.line)
                    response, seen = _broken(line, rid, error), None
                if seen is None or seen.aborted is None:
                    break
                if self._stopping.is_set():
                    return
                logger.warning(
                    "%s: line %d was aborted (%s), try %d of %d",
                    self._batch_id, line.line, seen.aborted, attempt, _TRIES,
                )  # fmt: skip
        finally:
            self._pool.give_back(size)
        if self._stopping.is_set() and response.status_code >= 500:
            return  # an error that may come from being given up is no answer
        result = answer(self._job, line.line, line.custom_id, response)
        usage = response.body.get("usage") or {}
        tally = Tally(
            completed=int(result.succeeded),
            failed=int(not result.succeeded),
            input_tokens=seen.prompt_tokens if seen else 0,
            cached_tokens=seen.cached_tokens if seen else 0,
            output_tokens=seen.completion_tokens if seen else 0,
            reasoning_tokens=usage.get("reasoning_tokens") or 0,
        )
        self._pool.meter.add(tally)
        self._keep(line, tally, result.to_json())

    def _keep(self, line: BatchLine | LineError, tally: Tally, data: bytes) -> None:
        assert line.line is not None
        self._answered.append(Entry(line.line, tally, data))

    async def _sync_until(self, feeding: asyncio.Task[None]) -> None:
        """Write answers down in groups until feeding has ended and all are written."""
        while not feeding.done():
            await asyncio.wait({feeding}, timeout=SYNC_SECONDS)
            await self._sync()
        while self._in_flight:  # those being given up
            await asyncio.wait(self._in_flight)
        await self._sync()

    async def _sync(self) -> None:
        group, self._answered = self._answered, []
        if not group:
            return
        await self._patience.store(lambda: self._store.io(lambda: self._journal.append(group)))
        tally = self._journal.tally
        await self._patience.store(
            lambda: self._store.db.write(
                lambda db: batch_table.set_counts(db, self._batch_id, self._total, tally)
            )
        )

    async def _give_up(self) -> None:
        """Have the engine drop what it still has of this batch."""
        self._stopping.set()
        deadline = asyncio.get_running_loop().time() + ABORT_SECONDS
        while self._in_flight and asyncio.get_running_loop().time() < deadline:
            # Again and again: a request still being tokenized reaches the scheduler afterwards.
            self._engine.abort(self._job)
            await asyncio.wait(self._in_flight, timeout=0.5)
        for task in self._in_flight:
            task.cancel()

    def _demand(self) -> Demand:
        done = len(self._journal) + len(self._answered)
        return Demand(self._total - done, len(self._in_flight), self._seconds_left())


def _broken(line: BatchLine, rid: str, error: Exception) -> Response:
    body = {
        "message": f"Line {line.line}: the server had an error: {error}",
        "type": "server_error",
        "param": None,
        "code": None,
        "line": line.line,
    }
    return Response(status_code=500, request_id=rid, body={"error": body})
