"""Batches with more lines than the engine takes in at once: planned as a whole, before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.answering.line_source import LineSource
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.dispatch.fed_engine import FedEngine
from sglang.srt.blendserve.dispatch.job_planning import JobPlanning, PlannedJob
from sglang.srt.blendserve.dispatch.planned_lines import Standing
from sglang.srt.blendserve.requests.inputs import PlainFile
from sglang.srt.blendserve.requests.line_blocks import FileScan
from sglang.srt.blendserve.requests.preparation import Preparation
from sglang.srt.blendserve.requests.request_store import RequestStore
from sglang.srt.blendserve.server.plan_view import PlanView

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_VIEW_SECONDS = 2.0


class QueuedPreparation:
    """A request store that is made when no other one is; see `planned_lines.Preparing`."""

    def __init__(self, preparation: Preparation, found: FileScan, turn: asyncio.Lock) -> None:
        """Wait for the ``turn``.

        Args:
            found: what the input holds.
        """
        self.folder, self.found = preparation.folder, found
        self._preparation = preparation
        self._failure: Exception | None = None
        self._making = asyncio.create_task(self._make(turn))

    @property
    def begun(self) -> bool:
        """Whether there is something of it."""
        return self._failure is not None or self._preparation.begun

    @property
    def store(self) -> RequestStore:
        """What is there of it, once it has begun."""
        return self._preparation.store

    def wait(self, seconds: float | None = None) -> bool:
        """Return whether it is whole; raises why it cannot be."""
        if self._failure is not None:
            raise self._failure
        return self._preparation.begun and self._preparation.wait(seconds)

    async def close(self) -> None:
        """End it, wherever it is."""
        self._making.cancel()
        await asyncio.wait({self._making})
        await asyncio.to_thread(self._preparation.close)
        if self._preparation.begun:
            self._preparation.store.close()

    async def _make(self, turn: asyncio.Lock) -> None:
        async with turn:
            try:
                await asyncio.to_thread(self._preparation.begin)
            except Exception as error:  # of any kind: the lines go in the order of the file
                self._failure = error
            while self._preparation.working:
                await asyncio.sleep(_LOOK_SECONDS)


class BatchPlanning:
    """Request stores and plans of the open batches. Belongs to the server's event loop.

    Stores are made one after another: each keeps all cores busy. Meanwhile a batch goes on with
    lines from all over its file.
    """

    def __init__(self, tokenizer_manager: Any, engine: FedEngine) -> None:
        """Start nothing yet.

        Args:
            tokenizer_manager: the server's.
            engine: the lines are for it.
        """
        self._manager, self._engine = tokenizer_manager, engine
        self._planning: JobPlanning | None = None
        self._turn = asyncio.Lock()
        self._asked: asyncio.Task[Mapping[str, Any] | None] | None = None
        self._preparations: dict[str, QueuedPreparation] = {}

    async def lines(self, job: PlannedJob, folder: Path, stop: Stop) -> LineSource | None:
        """Return the lines of a batch in the order of a plan; None where there can be none.

        Args:
            folder: for its request store.
            stop: of the batch.
        """
        planning = self._planning = self._planning or JobPlanning(self._engine)
        try:
            source = PlainFile(str(job.file))
            preparation = self._preparations[job.name] = QueuedPreparation(
                Preparation(
                    folder,
                    source,
                    self._manager.server_args,
                    job.rules,
                    mend="Free some, or give --batch-dir a place with more.",
                ),
                await asyncio.to_thread(source.scan),
                self._turn,
            )
            return await planning.lines(job, preparation, stop)
        except Exception as error:  # of any kind, inside SGLang too: a plan is an extra
            logger.error("%s goes to the engine in the order of its file: %s", job.name, error)
            await self.end(job.name)
            return None

    @property
    def planner_starts(self) -> int:
        """How often a planner's process was started."""
        return 0 if self._planning is None else self._planning.planner_starts

    def standings(self) -> dict[str, Standing]:
        """Return how far the batches are that are planned, by the names of their jobs."""
        return {} if self._planning is None else self._planning.standings()

    async def view(self) -> PlanView | None:
        """Return the plan over all of them; None if there is none, or the planner is busy."""
        if self._planning is None:
            return None
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._planning.view())
        await asyncio.wait({self._asked}, timeout=_VIEW_SECONDS)
        found = self._asked.result() if self._asked.done() else None
        return None if found is None else PlanView.of_plan(found)

    async def end(self, job: str) -> None:
        """A batch needs no plan any more. Of one that has none it does nothing."""
        preparation = self._preparations.pop(job, None)
        if preparation is None:
            return
        if self._planning is not None:
            await self._planning.end(job)
        await preparation.close()

    async def close(self) -> None:
        """End all processes."""
        for job in [*self._preparations]:
            await self.end(job)
        if self._planning is not None:
            await self._planning.close()
