"""Lines in, results out: the one loop that answers the lines of a job, in `run` and the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from sglang.srt.blendserve.answering.disk_retry import DiskRetry
from sglang.srt.blendserve.answering.engine import Engine, EngineLost
from sglang.srt.blendserve.answering.job import Job, OffLoop
from sglang.srt.blendserve.answering.line_answers import LineAnswers
from sglang.srt.blendserve.answering.line_failures import engine_died
from sglang.srt.blendserve.answering.line_source import LineSource, SizedLine
from sglang.srt.blendserve.answering.lines_on_record import LinesOnRecord
from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.answering.result_log import ResultLog, refused
from sglang.srt.blendserve.answering.slots import Demand, SlotPool
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.answering.totals import JobTotals, tally_of
from sglang.srt.blendserve.answering.turns import EngineTurns
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.store.engine_record import EngineRecord
from sglang.srt.blendserve.store.line_result import LineResult

SYNC_SECONDS = 0.5
"""Results gather this long and are then synced to the disk together."""

ABORT_SECONDS = 5.0
"""Time the engine gets to give up requests before nobody waits for them any more."""

DOUBT_SECONDS = 2.0
"""An error of the engine's own (5xx) is written down after this time, and not at all if the job
stops meanwhile: it takes SGLang a second to notice that one of its processes has died."""

_ASK_AGAIN_SECONDS = 0.05
"""Time after which a source is asked again whose next lines are not known yet."""

_HELD_SECONDS = 1.0
"""For so long slots are held back for a job whose next lines are being looked up."""


class AnsweringLoop:
    """Answers the lines of one job that have no result, until they have or the job stops.

    Each line ends as exactly one result in the log, whatever happens to it: an invalid line and a
    request that its endpoint refuses are results, an exception while a line is executed is the
    result of that line, and a request that the engine aborted is tried again, three times in all.
    A line that the engine has died of is condemned by its record, and not sent again.

    Attributes:
        totals: what the lines have come to.
    """

    def __init__(
        self,
        job: Job,
        source: LineSource,
        log: ResultLog,
        *,
        engine: Engine,
        slots: SlotPool,
        turns: EngineTurns,
        record: EngineRecord,
        stop: Stop,
        retry: DiskRetry,
        off_loop: OffLoop,
        after_sync: Callable[[], Awaitable[None]],
        reading: OffLoop | None = None,
        totals: JobTotals | None = None,
    ) -> None:
        """Prepare to answer the lines of ``source``.

        Args:
            log: where results go.
            slots: those of the engine, which other jobs may share.
            turns: the engine's, which other jobs share; the job has joined them by its name.
            record: the job's, of lines in the engine. If the engine dies it is left as it is.
            stop: ends the job early.
            retry: repeats what the disk does not take.
            off_loop: runs what may block.
            after_sync: awaited every half second, when all results up to then are synced.
            reading: asks ``source`` for lines; None: as ``off_loop``.
            totals: of the job so far, to go on with; None: there are none.
        """
        self.totals = totals or JobTotals()
        self._job, self._source, self._log = job, source, log
        self._engine, self._slots, self._stop = engine, slots, stop
        self._answers = LineAnswers(job, engine, stop)
        self._turns, self._on_record = turns, LinesOnRecord(record, turns, retry)
        self._retry, self._off_loop, self._after_sync = retry, off_loop, after_sync
        self._reading = reading or off_loop
        self._has_lines = True
        self._asked_at: float | None = None
        self._waits_for_turn = False
        self._left = job.left
        self._unsynced: list[int] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Lines in the engine."""
        return len(self._in_flight)

    async def run(self) -> None:
        """Answer the lines; return when each has a result that is synced, or the job stops.

        Raises:
            Stopped: the disk takes no results and the job is suspended.
            Exception: the input cannot be read on, or the log takes no more. Results so far are
                in the log.
        """
        feeding = asyncio.create_task(self._feed())
        feeding.add_done_callback(self._note_failure)
        syncing = asyncio.create_task(self._sync_until(feeding))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({syncing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            feeding.cancel()
            await self._give_up()
            await asyncio.wait({feeding, syncing})
            self._turns.ordinary_done(self._job.name)
            died = self._stop.reason == "engine died"
            self._on_record.leave_the_rest(self._job.label, engine_died=died)
        if self._failure is not None:
            raise self._failure
        syncing.result()

    async def _feed(self) -> None:
        """Start a task for each line as slots come free; return when all tasks have ended."""
        self._slots.register(self, self._wants_slots, self._demand)
        try:
            suspects = await self._feed_others()
        finally:
            self._slots.forget(self)
        self._turns.ordinary_done(self._job.name)
        await self._begin_all(suspects)
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    def _wants_slots(self) -> bool:
        """Whether the next line will ask for a slot in a moment."""
        # Who waits for its turn may wait for a line of a lower priority, which waits for a slot.
        if self._waits_for_turn or self._turns.in_round:
            return False
        if not self._has_lines or self._job.pause.paused:
            return False
        late = self._asked_at is not None and time.monotonic() - self._asked_at > _HELD_SECONDS
        return not late and self._retry.problem is None

    async def _feed_others(self) -> list[SizedLine]:
        """Start a task for each line that is no suspect; return those that are."""
        suspects: list[SizedLine] = []
        while (lines := await self._next_lines()) != []:
            self._has_lines = lines is not None
            if lines is None:
                self._slots.look_again()
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
            for sized in lines or ():
                await self._retry.wait_until_fine()
                if isinstance(line := sized.line, LineError):
                    self._keep(refused(self._job.name, line))
                elif self._on_record.condemned(line.line):
                    self._keep(refused(self._job.name, engine_died(line)))
                elif self._on_record.suspected(line.line):
                    suspects.append(sized._replace(engine=None))
                    self._source.put_aside(line.line)
                else:
                    await self._pause_is_over()
                    await self._begin(line, sized)
                    await asyncio.sleep(0)  # online requests come in between
        return suspects

    async def _next_lines(self) -> list[SizedLine] | None:
        self._asked_at = time.monotonic()
        try:
            return await self._reading(self._source.next_lines)
        finally:
            self._asked_at = None

    async def _pause_is_over(self) -> None:
        """Wait while the job is paused; suspects of other jobs do not wait for its lines then."""
        if self._job.pause.paused:
            self._slots.look_again()
            self._turns.ordinary_done(self._job.name)
            await self._job.pause.over()
            self._turns.join(self._job.name)

    async def _begin_all(self, suspects: list[SizedLine]) -> None:
        """Send lines in whatever rounds they get their turn."""
        tasks = [
            asyncio.create_task(self._begin(sized.line, sized))
            for sized in suspects
            if isinstance(sized.line, BatchLine)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _begin(self, line: BatchLine, sized: SizedLine) -> None:
        """Send a line when it is its turn and there is a slot, on record before it goes in."""
        await self._job.pause.over()
        self._waits_for_turn = True
        try:
            await self._on_record.take_turn(line.line)
        finally:
            self._waits_for_turn = False
        await self._take_slot(line, sized)
        self._send(line, sized)

    async def _take_slot(self, line: BatchLine, sized: SizedLine) -> None:
        """Wait for a slot, and note that the line goes into the engine."""
        await self._slots.take(sized.size, self._demand)
        try:
            await self._on_record.write(line.line)
        except BaseException:
            self._slots.give_back(sized.size, self._job.user)
            raise

    def _send(self, line: BatchLine, sized: SizedLine) -> None:
        task = asyncio.create_task(self._answer(line, sized, self._job.rid(line)))
        self._in_flight.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._note_failure(task):  # the log takes no more
            self._stop.request("failed")

    def _note_failure(self, task: asyncio.Task[None]) -> bool:
        """Return whether a task has failed; the first failure is the one that `run` raises."""
        error = None if task.cancelled() else task.exception()
        self._failure = self._failure or error
        return error is not None

    async def _answer(self, line: BatchLine, sized: SizedLine, rid: str) -> None:
        """Get the answer to a line and keep it, unless it was given up."""
        while (lost := await self._answered_by_an_engine(line, sized, rid)) is not None:
            if self._stop.reason is not None:
                return
            if not await self._on_record.may_go_on(line.line, lost.lines):
                self._keep(refused(self._job.name, engine_died(line)))
                return
            await self._take_slot(line, sized)
            sized = sized._replace(engine=None)

    async def _answered_by_an_engine(
        self, line: BatchLine, sized: SizedLine, rid: str
    ) -> EngineLost | None:
        """Get the answer to a line and keep it; return that its engine, one of several, has died
        before there was one."""
        self.totals.begin()
        try:
            response, seen = await self._answers.answer(line, rid, sized)
        except EngineLost as lost:
            return lost
        finally:
            self._slots.give_back(sized.size, self._job.user)
        doubtful = response.status_code >= 500 or (seen is not None and seen.aborted is not None)
        if doubtful and await self._stop.requested_within(DOUBT_SECONDS):
            return None  # an error that may come from being given up is no answer
        response, data = self._answers.written(line, rid, response)
        tally = tally_of(response, seen)
        self._slots.meter.add(tally)
        self._keep(LineResult(line.line, tally, data), seen)
        return None

    def _keep(self, result: LineResult, seen: Observation | None = None) -> None:
        self._log.append([result])
        self._unsynced.append(result.line)
        learned = result.tally.output_tokens if result.tally.completed else None
        self._source.answered(result.line, learned)
        self._left -= 1
        self.totals.add(result.tally, seen)

    async def _sync_until(self, feeding: asyncio.Task[None]) -> None:
        """Sync results in groups until feeding has ended and all results are synced."""
        while not feeding.done():
            await asyncio.wait({feeding}, timeout=SYNC_SECONDS)
            await self._sync()
        while self._in_flight:
            await asyncio.wait(self._in_flight)
        await self._sync()

    async def _sync(self) -> None:
        if self._unsynced:
            lines, self._unsynced = self._unsynced, []
            await self._retry.persist(lambda: self._sync_and_leave(lines))
            self._on_record.over(lines)
        await self._after_sync()

    async def _sync_and_leave(self, lines: list[int]) -> None:
        await self._off_loop(self._log.sync)
        self._on_record.synced(lines)

    async def _give_up(self) -> None:
        """Have the engine drop what it still has of this job, and wait for that a while."""
        if not self._in_flight:
            return
        self._stop.request("failed")  # unless it stops for another reason
        deadline = asyncio.get_running_loop().time() + ABORT_SECONDS
        while self._in_flight and asyncio.get_running_loop().time() < deadline:
            if self._stop.reason in ("engine died", "no engine"):
                break
            # Again and again: a request still being tokenized reaches the scheduler afterwards.
            self._engine.abort(self._job.name)
            await asyncio.wait(self._in_flight, timeout=0.5)
        for task in self._in_flight:
            task.cancel()

    def _demand(self) -> Demand:
        job = self._job
        return Demand(
            self._left,
            len(self._in_flight),
            job.seconds_left(),
            job.priority(),
            job.user,
            job.share,
        )
