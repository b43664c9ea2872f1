"""Who may be in the engine together, after it has died of a line that nobody knows.

Lines that were in the engine at its death are *suspects*. They go in when all other lines that were
there before them are done, in *rounds*: a round has at most half as many lines as were in the
engine when its lines were in it at a death, and nothing else of any batch is in the engine
meanwhile. So each further death leaves half the suspects, and in the end one line that was alone.
Everybody else's lines are answered first.

Without suspects nobody ever waits here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import NamedTuple


class _Suspect(NamedTuple):
    group: int
    since: int


class EngineTurns:
    """Lets ordinary lines into the engine together, and suspects in rounds of their own.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._clock = itertools.count()
        self._jobs: dict[str, int] = {}  # with ordinary lines left -> when it came
        self._suspects: dict[asyncio.Future[None], _Suspect] = {}  # the oldest first
        self._ordinary: dict[asyncio.Future[None], None] = {}
        self._inside = 0
        self._round = False

    @property
    def in_round(self) -> bool:
        """Whether only suspects are let in now."""
        return self._round

    def join(self, job: str) -> None:
        """A job has ordinary lines to do. Suspects that come later wait for them."""
        self._jobs.setdefault(job, next(self._clock))

    def ordinary_done(self, job: str) -> None:
        """A job has sent all its ordinary lines, or has ended. Again it does nothing."""
        if self._jobs.pop(job, None) is not None:
            self._grant()

    async def enter(self, group: int) -> None:
        """Wait until a line may go into the engine; `leave` follows when its result is synced.

        Args:
            group: how many lines were in the engine with it at a death, 0: it was not in it.
        """
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if group:
            self._suspects[granted] = _Suspect(group, next(self._clock))
        else:
            self._ordinary[granted] = None
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            self._suspects.pop(granted, None)
            self._ordinary.pop(granted, None)
            if granted.done() and not granted.cancelled():  # let in and cancelled at once
                self.leave()
            else:
                self._grant()
            raise

    def leave(self, lines: int = 1) -> None:
        """So many lines have left the engine."""
        self._inside -= lines
        self._grant()

    def _due(self) -> bool:
        """Whether suspects go next: all jobs that were there before them have sent the others."""
        if not self._suspects:
            return False
        oldest = next(iter(self._suspects.values()))
        return all(came > oldest.since for came in self._jobs.values())

    def _grant(self) -> None:
        if not self._inside:
            self._round = False
        if self._round:
            return
        if not self._due():
            waiting, self._ordinary = self._ordinary, {}
            self._let_in(waiting)
        elif not self._inside:
            self._begin_round()

    def _begin_round(self) -> None:
        self._round = True
        # Stable: by arrival among equals.
        ranked = sorted(self._suspects, key=lambda granted: self._suspects[granted].group)
        most = max(1, (self._suspects[ranked[0]].group + 1) // 2)
        for granted in ranked[:most]:
            del self._suspects[granted]
        self._let_in(ranked[:most])

    def _let_in(self, waiting: Iterable[asyncio.Future[None]]) -> None:
        for granted in waiting:
            if not granted.cancelled():
                self._inside += 1
                granted.set_result(None)
