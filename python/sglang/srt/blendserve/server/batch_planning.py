"""Batches with more lines than the engine takes in at once: planned as a whole, before it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.answering.line_source import LineSource
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.model_config import ConfigError
from sglang.srt.blendserve.dispatch.job_planning import JobPlanning, PlannedJob
from sglang.srt.blendserve.requests.inputs import PlainFile
from sglang.srt.blendserve.requests.preparation import Preparation

logger = logging.getLogger(__name__)

_TURN_SECONDS = 0.5


class BatchPlanning:
    """Request stores and plans of the open batches. Belongs to the server's event loop.

    Stores are made one after another: each keeps all cores busy.
    """

    def __init__(self, tokenizer_manager: Any) -> None:
        """Start nothing yet; ``tokenizer_manager`` is the server's."""
        self._manager = tokenizer_manager
        self._planning = JobPlanning(tokenizer_manager)
        self._preparations: dict[str, Preparation] = {}

    async def lines(self, job: PlannedJob, folder: Path, stop: Stop) -> LineSource | None:
        """Return the lines of a batch in the order of a plan; None where there can be none.

        Args:
            folder: for its request store.
            stop: ends the waiting for others.
        """
        while self._busy():
            if await stop.requested_within(_TURN_SECONDS):
                return None
        preparation = self._preparations[job.name] = Preparation(
            folder,
            PlainFile(str(job.file)),
            self._manager.server_args,
            job.rules,
            mend="Free some, or give --batch-dir a place with more.",
        )
        try:
            await asyncio.to_thread(preparation.begin)
            return await self._planning.lines(job, preparation)
        except (OSError, ValueError, ConfigError) as error:
            logger.error("%s goes to the engine in the order of its file: %s", job.name, error)
            await self.end(job.name)
            return None

    async def end(self, job: str) -> None:
        """A batch needs no plan any more. Of one that has none it does nothing."""
        self._planning.end(job)
        preparation = self._preparations.pop(job, None)
        if preparation is not None:
            await asyncio.to_thread(preparation.close)

    async def close(self) -> None:
        """End all processes."""
        for job in [*self._preparations]:
            await self.end(job)
        await self._planning.close()

    def _busy(self) -> bool:
        return any(preparation.working for preparation in self._preparations.values())
