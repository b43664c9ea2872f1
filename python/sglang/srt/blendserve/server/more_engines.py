"""Engines beside the server's own, which answer lines of batches alone (``--batch-engines``)."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import psutil

from sglang.srt.blendserve.answering.engine import Engine
from sglang.srt.blendserve.engines import placement
from sglang.srt.blendserve.engines.control import LocalControl
from sglang.srt.blendserve.engines.engine_pool import EnginePool
from sglang.srt.blendserve.engines.link import Link
from sglang.srt.blendserve.engines.member import LocalMember
from sglang.srt.blendserve.engines.process_link import ProcessLink
from sglang.srt.blendserve.runtime.compat.server_args import release

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

logger = logging.getLogger(__name__)

_RESTARTS = 3
"""Times in a row that an engine is started again which died without an answer."""


class MoreEngines:
    """The server's engine and others as one.

    Attributes:
        pool: all of them.
    """

    def __init__(
        self, tokenizer_manager: TokenizerManager, own: Engine, engines: int, window: int
    ) -> None:
        """Start nothing yet.

        Args:
            tokenizer_manager: the server's.
            own: what answers lines on its engine.
            window: most lines in one engine.

        Raises:
            ValueError: there are too few cores, or GPUs.
        """
        self._args: Any = tokenizer_manager.server_args
        given = "OMP_NUM_THREADS" in os.environ
        self._placed = placement.divided(engines, self._args, threads_given=given)
        self.pool = EnginePool(
            self._start,
            engines,
            window,
            restarts=_RESTARTS,
            say=logger.warning,
            watchdog_seconds=float(release.view(self._args).watchdog_timeout),
            first=LocalMember(own, LocalControl(tokenizer_manager)),
        )

    async def begin(self) -> None:
        """Start the others; they join when they have started."""
        cores = self._placed[0].cores
        if cores:  # the server's engine has had all of them so far
            family = await asyncio.to_thread(psutil.Process().children, recursive=True)
            placement.confine((os.getpid(), *(child.pid for child in family)), cores)
        await self.pool.begin()

    async def _start(self, number: int) -> Link:
        return await ProcessLink.start(self._args, self._placed[number], keep_prompts=False)
