"""Which lines of a job are in an engine: on record before they go in, until their results are
synced. If the engine dies, the record says which lines are under suspicion."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sglang.srt.blendserve.answering.disk_retry import DiskRetry
from sglang.srt.blendserve.answering.turns import EngineTurns
from sglang.srt.blendserve.store.engine_record import EngineRecord

logger = logging.getLogger(__name__)


class LinesOnRecord:
    """The lines of one job that have entered an engine, in the turns that all jobs share."""

    def __init__(self, record: EngineRecord, turns: EngineTurns, retry: DiskRetry) -> None:
        """No line of the job is in an engine.

        Args:
            record: the job's. If the engine dies it is left as it is.
            turns: the engine's; the job has joined them.
            retry: repeats what the disk does not take.
        """
        self._record, self._turns, self._retry = record, turns, retry
        self._entered: set[int] = set()
        self._outlived: set[int] = set()  # lines that were in an engine at its death, once

    def condemned(self, line: int) -> bool:
        """Return whether the engine has died of a line."""
        return self._record.condemned(line)

    def suspected(self, line: int) -> bool:
        """Return whether a line was in an engine at its death."""
        return self._record.group(line) > 0

    async def take_turn(self, line: int) -> None:
        """Wait until a line may go into an engine."""
        await self._turns.enter(self._record.group(line))
        self._entered.add(line)

    async def write(self, line: int) -> None:
        """Note a line whose turn it is, before it goes in."""

        async def enter() -> None:
            self._record.enter(line)

        await self._retry.persist(enter)

    async def may_go_on(self, line: int, lines: int) -> bool:
        """A line was in one of several engines that has died; say, when it is its turn, whether
        another one gets it. False: it was condemned.

        Engines die of machines that are taken away, too, and then all that was in them would be
        under suspicion. So the first death of an engine that a line was in counts for nothing.

        Args:
            lines: how many were in the engine; 0: it did not die of a line.
        """
        if lines and line not in self._outlived and not self.suspected(line):
            self._outlived.add(line)
        elif lines:

            async def lost() -> list[int]:
                return self._record.lost([line], lines)

            condemned = await self._retry.persist(lost)
            self._entered.discard(line)
            self._turns.leave()
            if condemned:
                return False
            await self.take_turn(line)
        return True

    def synced(self, lines: list[int]) -> None:
        """Take lines off the record, whose results are synced.

        Raises:
            OSError: the record cannot be written.
        """
        self._record.leave(lines)

    def over(self, lines: Iterable[int]) -> None:
        """Lines that were taken off the record hold nobody's turn up any more."""
        left = self._entered.intersection(lines)
        self._entered -= left
        self._turns.leave(len(left))

    def leave_the_rest(self, label: str, *, engine_died: bool) -> None:
        """The job stops: its lines without a result have left the engine, unless it has died. Those
        of several engines have been told so, one by one.

        Args:
            label: the job's, for the log.
        """
        left, self._entered = self._entered, set()
        if not engine_died:
            try:
                self._record.leave(left)
            except OSError as error:  # they will be taken for suspects, which costs some time
                logger.error("%s: the record cannot be written: %s", label, error)
        self._turns.leave(len(left))
