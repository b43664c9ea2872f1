"""Runs all open batches of the store, each in a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiosqlite

from sglang.srt.blendserve.answering.disk_retry import is_storage_failure
from sglang.srt.blendserve.answering.rate_meter import RateMeter
from sglang.srt.blendserve.answering.slots import SlotPool
from sglang.srt.blendserve.answering.turns import EngineTurns
from sglang.srt.blendserve.server import engine_death
from sglang.srt.blendserve.server.activity import STATUSES, Activity, planned_work
from sglang.srt.blendserve.server.batch_run import BatchContext, BatchRun
from sglang.srt.blendserve.server.batch_settings import BatchSettings
from sglang.srt.blendserve.server.finalizing import abandon
from sglang.srt.blendserve.server.forecasts import Outlook, Prices
from sglang.srt.blendserve.server.gpu_time import GpuTime, Running
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.server.users import Users
from sglang.srt.blendserve.store import batch_table
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.directory import Store, now
from sglang.srt.blendserve.store.objects import job_of

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5
_REPORT_TICKS = 10
_SWEEP_TICKS = 120


class Runner:
    """Adopts the batches that a server before left open, and takes new ones."""

    def __init__(
        self, store: Store, engine: ServedEngine, settings: BatchSettings, users: Users
    ) -> None:
        self._store, self._engine = store, engine
        self._meter = RateMeter()
        self._pool = SlotPool(
            settings.max_in_flight * settings.engines,
            settings.max_in_flight_bytes * settings.engines,
            self._meter,
        )
        self._context = BatchContext(
            store,
            engine,
            self._pool,
            EngineTurns(),
            settings.max_requests,
            users,
            self._lines_left,
            lambda batch_id: self._gpu_time.take(batch_id),
        )
        self._runs: dict[str, BatchRun] = {}
        self._gpu_time = GpuTime(engine.busy_gpus, engine.weigh)
        self.ended = 0
        """Batches that have ended since the start."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready = asyncio.Event()
        self._stopping = False
        self._clock: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[Activity], None]] = []

    def _lines_left(self, owner: str | None = None) -> int:
        """Lines without a result, of all batches or of those of a user."""
        runs = self._runs.values()
        return sum(run.lines_left for run in runs if owner is None or run.owner == owner)

    def on_activity(self, listener: Callable[[Activity], None]) -> None:
        """Call ``listener`` with the new numbers every few seconds."""
        self._listeners.append(listener)

    async def activity(self) -> Activity:
        """Return what is going on, in numbers."""

        async def query(db: aiosqlite.Connection) -> tuple[dict[str, int], list[BatchRecord]]:
            return await batch_table.count_by_status(db), await batch_table.open_batches(db)

        counts, records = await self._store.db.read(query)
        completed = sum(record.tally.completed for record in records)
        failed = sum(record.tally.failed for record in records)
        total = sum(record.total for record in records)
        in_flight, planning = self._pool.in_flight, self._engine.planning
        return Activity(
            batches={status: counts.get(status, 0) for status in STATUSES},
            requests={
                "completed": completed,
                "failed": failed,
                "in_flight": in_flight,
                "waiting": max(total - completed - failed - in_flight, 0),
            },
            slots=self._pool.slots,
            waiting=sum(bool(run.problem) for run in self._runs.values()),
            rates=self._meter.rates(),
            paused=sum(record.paused for record in records),
            planned=planned_work(() if planning is None else planning.standings().values()),
            planner_starts=0 if planning is None else planning.planner_starts,
            engines=self._engine.standings(),
        )

    def seconds_left(self, batch_id: str) -> float | None:
        """Return how long a batch will take by the rate of late, seconds; None: not known."""
        run = self._runs.get(batch_id)
        return None if run is None else run.seconds_left

    def gpu_seconds(self, record: BatchRecord) -> float:
        """Return what a batch has used of the GPUs so far."""
        return record.gpu_seconds + self._gpu_time.due(record.id)

    def outlook(self, prices: Prices) -> Outlook:
        """Return what is expected of the open batches now, by what batches have cost."""
        return Outlook(self._runs, self._engine, self._gpu_time, self._meter, prices)

    def journal_size(self, batch_id: str) -> int | None:
        """Return how many bytes of a batch's results are on the disk; None: it has not begun."""
        run = self._runs.get(batch_id)
        return None if run is None else run.journal_size

    def problem(self, batch_id: str) -> list[dict[str, Any]]:
        """Return why a batch waits, in the form of ``errors.data``; empty when it does not."""
        run = self._runs.get(batch_id)
        return run.problem if run else []

    async def start(self) -> None:
        """Clear away what a crash left, and go on with open batches once the engine is ready."""
        await self._store.start()
        records = await self._store.db.read(batch_table.open_batches)
        if records:
            logger.info("Adopting %d open batches", len(records))
        await self._store.io(
            lambda: engine_death.settle(self._store, [record.id for record in records])
        )
        for record in records:
            self._context.turns.join(job_of(record.id))
        for record in records:
            self.add(record)
        self._clock = asyncio.create_task(self._tick_forever())
        self._watch = asyncio.create_task(self._engine.watch(lambda: self._pool.in_flight > 0))

    def add(self, record: BatchRecord) -> None:
        """Run a batch, from the state it is in."""
        if self._stopping:
            return  # the next server adopts it
        run = self._runs[record.id] = BatchRun(record, self._context)
        task = self._tasks[record.id] = asyncio.create_task(self._carry(record.id, run))
        task.add_done_callback(lambda _: self._tasks.pop(record.id, None))

    def change(self, record: BatchRecord) -> None:
        """Go by a batch's priority, and by whether it is paused, as ``record`` has them."""
        run = self._runs.get(record.id)
        if run is not None:
            run.change(record)

    def cancel(self, record: BatchRecord) -> None:
        """Stop a batch whose state in the database is ``cancelling``."""
        run = self._runs.get(record.id)
        if run is not None and run.broken:
            self.add(record)
        elif run is not None:
            run.stop("cancelled")

    async def stop(self) -> None:
        """Suspend all batches; when this returns, their results so far are synced."""
        self._suspend()
        for task in (self._clock, self._watch):
            if task:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        if self._engine.planning is not None:
            await self._engine.planning.close()

    async def _carry(self, batch_id: str, run: BatchRun) -> None:
        await self._ready.wait()
        try:
            await run.run()
        except Exception:
            # Its state is as it was; the next start of the server tries again.
            logger.exception("%s stopped by an error", batch_id)
            run.broken = not await self._abandoned(batch_id)
        if not run.broken:
            del self._runs[batch_id]
            self.ended += 1

    async def _abandoned(self, batch_id: str) -> bool:
        """End a batch that is being cancelled and cannot even end; return whether it was one."""
        try:
            record = await self._store.db.read(lambda db: batch_table.get_batch(db, batch_id))
            if record.status != "cancelling":
                return False
            await abandon(self._store, batch_id)
        except Exception:  # of any kind: logged, and the next start tries again
            logger.exception("%s cannot be ended", batch_id)
            return False
        return True

    async def _tick_forever(self) -> None:
        ticks = 0
        while True:
            try:
                self._tick()
                if self._listeners and ticks % _REPORT_TICKS == 0:
                    activity = await self.activity()
                    for listener in self._listeners:
                        listener(activity)
                if ticks % _SWEEP_TICKS == 0:
                    await self._store.delete_expired_files()
            except Exception as error:
                if not is_storage_failure(error):
                    logger.exception("The batch service's clock stumbled")
            ticks += 1
            await asyncio.sleep(TICK_SECONDS)

    def _tick(self) -> None:
        if self._engine.ready:
            self._ready.set()
        if self._engine.stopping:
            self._suspend()
        self._gpu_time.tick(
            {batch_id: Running(run.tally, run.in_flight) for batch_id, run in self._runs.items()}
        )
        for run in list(self._runs.values()):
            if run.expires_at <= now():
                run.stop("expired")
        self._pool.look_again()

    def _suspend(self) -> None:
        self._stopping = True
        for run in list(self._runs.values()):
            run.stop("suspended")
        self._ready.set()  # those that wait for the engine end at once
