"""A run with more lines than its engine takes in at once: planned as a whole, before the engine.

The request store lies beside the output, in ``OUTPUT.requests``. It is made while the engine starts
and works, and deleted when every line has its result; a run that goes on finds it there.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.line_source import InputScan, LineSource
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.dispatch.fed_engine import FedEngine
from sglang.srt.blendserve.dispatch.job_planning import JobPlanning, PlannedJob
from sglang.srt.blendserve.requests.inputs import PlainFile
from sglang.srt.blendserve.requests.preparation import Preparation
from sglang.srt.blendserve.requests.request_store import delete_store
from sglang.srt.blendserve.run.run_log import RunLog
from sglang.srt.blendserve.run.source import BatchSource

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)


class RunPlanning:
    """Makes the request store of a run, and lines in the order of a plan. Use as a context manager,
    which deletes the store if the run has ended, and else keeps a whole one."""

    def __init__(
        self,
        output: Path,
        source: BatchSource,
        found: InputScan,
        log: RunLog,
        server_args: ServerArgs,
    ) -> None:
        """Begin to make the store of ``source``.

        Args:
            output: the run's output file.
            found: what reading it has shown.
            log: the run's, after `RunLog.begin`.
            server_args: the engine's, resolved.

        Raises:
            OSError, ValueError: there can be no store; the message says why.
        """
        self._source, self._found, self._log = source, found, log
        self._rules = Rules(max_lines=job_ids.MAX_REQUESTS)
        self._output = output
        self._file = source.plain()
        self._preparation = Preparation(
            store_folder(output),
            PlainFile(str(self._file)),
            server_args,
            self._rules,
            mend="Free some, or give --output a place with more.",
        )
        self._preparation.begin()

    def __enter__(self) -> RunPlanning:
        return self

    def __exit__(self, *_: object) -> None:
        self._preparation.close()
        if self._preparation.begun:
            self._preparation.store.close()
        if self._log.done == self._found.total or not self._is_whole:
            forget_store(self._output)

    @property
    def seconds(self) -> float:
        """How long the store took to make, or has taken so far."""
        return self._preparation.seconds

    @property
    def _is_whole(self) -> bool:
        with suppress(Exception):  # why it is not whole was said when it mattered
            return self._preparation.wait(0.0)
        return False

    @asynccontextmanager
    async def lines(
        self, engine: FedEngine, cost: CostModel, stop: Stop
    ) -> AsyncIterator[LineSource]:
        """Give the lines that have no result, planned for ``engine``; in the order of the file if
        there can be no plan.

        Args:
            cost: what work costs on it.
            stop: of the run.
        """
        planning = JobPlanning(engine, cost)
        with ExitStack() as stack:
            job = PlannedJob(
                self._log.identity.job,
                self._file,
                self._rules,
                self._found.bad_lines,
                self._log.__contains__,
                lambda leave_out: stack.enter_context(self._source.lines(leave_out)),
            )
            try:
                lines: LineSource
                try:
                    lines = await planning.lines(job, self._preparation, stop)
                except Exception as error:  # of any kind, inside SGLang too: a plan is an extra
                    logger.error("The lines go in the order of the file: %s", error)
                    lines = job.file_order(self._log.__contains__)
                yield lines
            finally:
                await planning.close()


def store_folder(output: Path) -> Path:
    """Return where the request store of the run lies that writes ``output``."""
    return output.with_name(f"{output.name}.requests")


def forget_store(output: Path) -> None:
    """Remove that store, if there is one; it stays where that fails."""
    folder = store_folder(output)
    if folder.is_dir():
        with suppress(OSError):
            delete_store(folder)
