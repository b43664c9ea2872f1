"""Stores and plans of the jobs of one or several engines, from their beginning to their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.line_check import Rules
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.engine_state import keep_telling
from sglang.srt.blendserve.dispatch.fed_engine import FedEngine
from sglang.srt.blendserve.dispatch.planned_lines import (
    FileOrderOf,
    PlannedLines,
    Preparing,
    Standing,
)
from sglang.srt.blendserve.dispatch.planner_client import PlannerClient

logger = logging.getLogger(__name__)

_END_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job whose lines are to be planned.

    Attributes:
        name: the job's.
        file: its input, as bytes that can be read from anywhere.
        rules: what the input keeps to.
        bad: numbers of the lines that reading the whole input has shown to be none.
        has_result: whether the line of a number has a result.
        file_order: for the lines that are not handed out by plan.
    """

    name: str
    file: Path
    rules: Rules
    bad: Iterable[int]
    has_result: Callable[[int], bool]
    file_order: FileOrderOf


class JobPlanning:
    """The planner of one or several engines. Belongs to their event loop."""

    def __init__(self, engine: FedEngine, cost: CostModel | None = None) -> None:
        """Start nothing yet.

        Args:
            engine: the lines are for it.
            cost: what work costs on it, None: found out when it is first needed.
        """
        self._engine, self._cost = engine, cost
        self._planner: PlannerClient | None = None
        self._starting = asyncio.Lock()
        self._open: dict[str, PlannedLines] = {}
        self._telling: asyncio.Task[None] | None = None
        self._closed = False

    async def lines(self, job: PlannedJob, preparation: Preparing, stop: Stop) -> PlannedLines:
        """Return the lines of a job in the order of a plan.

        Args:
            preparation: of its request store.
            stop: ends the waiting for the engine's answer.

        Raises:
            ConfigError: nobody knows what work costs on the engine.
            ValueError: the engine has no pool of offline requests, or does not answer.
        """
        async with self._starting:  # two would start two planners
            if self._planner is None:
                settings = await self._engine.planner_settings(stop, self._cost)
                self._planner = PlannerClient(settings)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())
        planner = self._planner
        lines = await asyncio.to_thread(  # it looks at each line of the input
            lambda: PlannedLines(
                job.name,
                job.file,
                job.rules,
                preparation=preparation,
                planner=planner,
                has_result=job.has_result,
                bad=job.bad,
                file_order=job.file_order,
                rooms=self._engine.rooms,
            )
        )
        self._open[job.name] = lines
        return lines

    @property
    def planner_starts(self) -> int:
        """How often a planner's process was started."""
        return 0 if self._planner is None else self._planner.starts

    def standings(self) -> dict[str, Standing]:
        """Return how far the open jobs are, by name."""
        return {name: lines.standing for name, lines in self._open.items()}

    async def view(self) -> Mapping[str, Any] | None:
        """Return the plan over all jobs; see `PlannerClient.view`."""
        planner = self._planner
        return None if planner is None else await asyncio.to_thread(planner.view)

    async def end(self, job: str) -> None:
        """The lines of a job are not asked for any more. Of one that has none it does nothing."""
        lines, planner = self._open.pop(job, None), self._planner
        if lines is not None:
            await asyncio.to_thread(lines.close)
        if lines is not None and planner is not None:
            await asyncio.to_thread(planner.close, job)

    async def close(self) -> None:
        """End the planner's process."""
        self._closed = True
        if self._planner is not None:
            await asyncio.to_thread(self._planner.end)
        if self._telling is not None:  # not cancelled: SGLang would wait for the answer for ever
            await asyncio.wait({self._telling}, timeout=_END_SECONDS)

    async def _tell(self) -> None:
        """Tell the engine what is left of all jobs."""
        try:
            await keep_telling(self._engine.tell_beyond, self._left, lambda: self._closed)
        except Exception:  # of any kind, inside SGLang: the engine goes by what it has itself
            logger.exception("The engine is not told what waits elsewhere for it")

    def _left(self) -> RemainingWork:
        work = [lines.left for lines in self._open.values()]
        return RemainingWork(sum(one.compute for one in work), sum(one.memory for one in work))
