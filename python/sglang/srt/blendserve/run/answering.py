"""Send the lines of a run to the engine, all as one job, and write down what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.executor import Executor
from sglang.srt.blendserve.batch_file.results import answer, refusal
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.run.accounts import Accounts
from sglang.srt.blendserve.run.failure import INTERRUPTED, RunFailure
from sglang.srt.blendserve.run.journal import RunJournal
from sglang.srt.blendserve.run.progress import Progress

_SYNC_SECONDS = 1.0


class Answering:
    """The lines of one run that have no result yet.

    Attributes:
        seconds: from the first request sent to the last result, 0 before there is one.
    """

    def __init__(
        self,
        executor: Executor,
        journal: RunJournal,
        accounts: Accounts,
        progress: Progress,
        *,
        total: int,
        max_in_flight: int,
    ) -> None:
        """Prepare to send ``total`` valid lines, at most ``max_in_flight`` at a time."""
        self._executor, self._journal = executor, journal
        self._accounts, self._progress = accounts, progress
        # A scheduler that waits for all of a job before it plans would wait for ever for those
        # that are held back.
        self._total = total if total <= max_in_flight else 0
        self._slots = asyncio.Semaphore(max_in_flight)
        self._first: float | None = None
        self._last = 0.0

    @property
    def seconds(self) -> float:
        return 0.0 if self._first is None else max(0.0, self._last - self._first)

    async def run(
        self, lines: Iterable[BatchLine | LineError], ending: asyncio.Future[str]
    ) -> None:
        """Answer ``lines`` until all have their result or ``ending`` is done.

        Raises:
            RunFailure: it ended early; all results that had come are written.
        """
        work = asyncio.create_task(self._work(lines))
        keeping = asyncio.create_task(self._keep_synced(work))
        try:
            first: set[asyncio.Future[Any]] = {keeping, ending}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            outcomes = await asyncio.gather(work, keeping, return_exceptions=True)
        _raise_first(outcomes)
        if ending.done():
            raise _ended(ending.result())

    async def _work(self, lines: Iterable[BatchLine | LineError]) -> None:
        index = 0
        async with asyncio.TaskGroup() as group:
            for line in lines:
                if line in self._journal:
                    continue
                if isinstance(line, LineError):
                    self._journal.append(refusal(self._job, line))
                    self._progress.advance(0, 0)
                    continue
                await self._slots.acquire()
                group.create_task(self._answer(line, index))
                index += 1
                await asyncio.sleep(0)  # let it send its request before the next line is read

    async def _answer(self, line: BatchLine, index: int) -> None:
        if self._first is None:
            self._first = time.perf_counter()
        try:
            rid = job_ids.make_rid(self._job, self._total, index)
            response, seen = await self._executor.execute(line, rid)
        finally:
            self._slots.release()
        self._journal.append(answer(self._job, line.line, line.custom_id, response))
        self._last = time.perf_counter()
        self._accounts.add(seen)
        self._progress.advance(seen.prompt_tokens - seen.cached_tokens, seen.completion_tokens)

    @property
    def _job(self) -> str:
        return self._journal.identity.job

    async def _keep_synced(self, work: asyncio.Task[None]) -> None:
        """Have the disk keep new results, in groups, until ``work`` has ended and all are kept."""
        while not work.done():
            await asyncio.wait({work}, timeout=_SYNC_SECONDS)
            await asyncio.to_thread(self._journal.sync)
            self._progress.refresh()


def _raise_first(outcomes: Iterable[BaseException | None]) -> None:
    """Raise what the tasks failed with: of several failures a `RunFailure`, which says why."""
    for outcome in outcomes:
        if isinstance(outcome, BaseExceptionGroup):
            failures, _ = outcome.split(RunFailure)
            raise failures.exceptions[0] if failures is not None else outcome
        if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
            raise outcome


def _ended(reason: str) -> RunFailure:
    if reason == "interrupted":
        return RunFailure("Stopped before the end.", INTERRUPTED)
    return RunFailure("The engine died; SGLang's error, if it had one, stands above.")
