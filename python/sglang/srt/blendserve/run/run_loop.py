"""The answering loop of a run: one job without a deadline, which has the whole engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.disk_retry import DiskRetry
from sglang.srt.blendserve.answering.job import Job
from sglang.srt.blendserve.answering.line_source import InputScan, LineSource
from sglang.srt.blendserve.answering.loop import AnsweringLoop
from sglang.srt.blendserve.answering.rate_meter import RateMeter
from sglang.srt.blendserve.answering.slots import SlotPool
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.answering.totals import JobTotals
from sglang.srt.blendserve.answering.turns import EngineTurns
from sglang.srt.blendserve.dispatch.planned_lines import PlannedLines
from sglang.srt.blendserve.run.progress import Progress
from sglang.srt.blendserve.run.run_log import RunLog
from sglang.srt.blendserve.store.engine_record import EngineRecord

if TYPE_CHECKING:
    from sglang.srt.blendserve.answering.engine import Answer, Engine
    from sglang.srt.blendserve.batch_file.types import BatchLine
    from sglang.srt.blendserve.pool.pool_request import Tokens


def answering_loop(
    log: RunLog,
    lines: LineSource,
    found: InputScan,
    engine: Engine,
    stop: Stop,
    progress: Progress | None,
    max_in_flight: int,
    *,
    record: EngineRecord,
    totals: JobTotals | None = None,
) -> AnsweringLoop:
    """Return the loop that answers a run's ``lines``: all of them are one job without a deadline.

    Args:
        log: the run's, after `RunLog.begin`.
        found: what reading the input has shown.
        progress: shown twice a second, None: not at all.
        max_in_flight: most requests in the engine at once.
        record: of lines in the engine.
        totals: of the run so far, None: it begins.
    """
    name, turns = log.identity.job, EngineTurns()
    turns.join(name)

    async def show() -> None:
        if progress is not None:
            standing = lines.standing if isinstance(lines, PlannedLines) else None
            progress.show(loop.totals.tally, loop.in_flight, standing)

    loop = AnsweringLoop(
        Job(
            name,
            "the run",
            found.total - log.done,
            # A line that was added since has a number beyond; that it was is found at the end.
            lambda line: job_ids.make_rid(
                name, found.last_line if line.line <= found.last_line else 0, line.line - 1
            ),
        ),
        lines,
        log,
        engine=engine,
        slots=SlotPool(max_in_flight, None, RateMeter(), turnaround=False),
        turns=turns,
        record=record,
        stop=stop,
        retry=DiskRetry("the run", stop),
        off_loop=asyncio.to_thread,
        after_sync=show,
        totals=totals,
    )
    return loop


class NoEngine:
    """Stands for the engine of an input that has no valid line."""

    async def execute(
        self,
        line: BatchLine,
        rid: str,
        prompts: Sequence[Tokens] | None = None,
        engine: int | None = None,
    ) -> Answer:
        """Fail: there is nothing to answer."""
        raise AssertionError(f"line {line.line} has no result but was not to be answered")

    def abort(self, job: str) -> None:
        """Do nothing: it has no request."""
