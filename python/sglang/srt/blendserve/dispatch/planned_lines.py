"""The lines of an input in the order of a plan over all of them.

While the request store of the input is being made, the plan grows behind it; before there is one,
lines come from places spread over the file. What the plan has not handed out at its end (bad lines,
and whatever was lost on the way) is read front to back, and so is all of it where there can be no
plan: no line depends on planner or store.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from sglang.srt.blendserve.answering.line_source import LineSource, SizedLine
from sglang.srt.blendserve.batch_file.line_check import Rules, check_line
from sglang.srt.blendserve.batch_file.lines import RawLine
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.dispatcher import JobWork
from sglang.srt.blendserve.dispatch.engine_rooms import EnginePlace, EngineRooms
from sglang.srt.blendserve.dispatch.first_lines import first_lines, read_bytes
from sglang.srt.blendserve.dispatch.messages import News, Place, Taken
from sglang.srt.blendserve.dispatch.planner_client import PlannerClient, PlannerDied
from sglang.srt.blendserve.pool.pool_request import Tokens
from sglang.srt.blendserve.requests.columns import Flag
from sglang.srt.blendserve.requests.line_blocks import FileScan, lines_of
from sglang.srt.blendserve.requests.request_store import RequestStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_LINES = 256
"""Lines that are in the engine at once before there is a plan: they keep it busy until then, and
teach how long answers are."""

MAX_PROMPTS = 2048
"""Prompts of one line whose token ids are looked up; a line with more is tokenized again."""

_LINES = 64
_DEATHS = 3

FileOrderOf = Callable[[Callable[[int], bool]], LineSource]
"""Gives the lines of the input front to back, but those whose number a predicate is true of."""


class Preparing(Protocol):
    """A request store that is being made, as `requests.preparation.Preparation` makes it."""

    @property
    def folder(self) -> Path:
        """The store's own."""
        ...

    @property
    def found(self) -> FileScan:
        """What the input holds."""
        ...

    @property
    def begun(self) -> bool:
        """Whether there is something of it; until then nothing is planned."""
        ...

    @property
    def store(self) -> RequestStore:
        """What is there of it, once it has begun."""
        ...

    def wait(self, seconds: float | None = None) -> bool:
        """Return whether the store is whole, at the latest after a time; raises why it cannot
        be."""
        ...


class Standing(NamedTuple):
    """How far a job is.

    Attributes:
        prepared: rows of its request store that the planner has taken up.
        planned: requests that are or were in a plan.
        share: of all predicted work that is done, 0 to 1; a request that runs counts half. None
            before there is a plan.
        left: predicted work of what is planned and was not handed over, seconds.
        ended: part of all predicted work whose requests have ended, 0 to 1; None before there is a
            plan, and where it was made anew without them.
    """

    prepared: int
    planned: int
    share: float | None
    left: RemainingWork
    ended: float | None = None


class PlannedLines:
    """The lines of one job that have no result, as a planner orders them (`LineSource`).

    Attributes:
        taken: what the planner said last, None where there is no plan.
        paused: whether the job sends no lines now; what is left of it is nothing to the engine.
    """

    def __init__(
        self,
        job: str,
        file: Path,
        rules: Rules,
        *,
        preparation: Preparing,
        planner: PlannerClient,
        has_result: Callable[[int], bool],
        bad: Iterable[int],
        file_order: FileOrderOf,
        rooms: EngineRooms | None = None,
    ) -> None:
        """Hand out the lines of ``file``.

        Args:
            job: its name.
            file: the input, as bytes that can be read from anywhere.
            rules: what the input must keep to.
            preparation: makes its request store; what the input holds is known.
            planner: of the engines that the lines are for.
            has_result: whether the line of a number has a result; such a line is left out.
            bad: numbers of the lines that reading the whole input has shown to be none.
            file_order: for the lines that are not handed out by plan.
            rooms: of the engines; None: there is one, and who asks for a line has room for it.
        """
        self.taken: Taken | None = None
        self.paused = False
        self._job, self._file, self._rules = job, file, rules
        self._preparation, self._planner = preparation, planner
        self._has_result, self._file_order = has_result, file_order
        self._rooms = rooms
        self._engines: dict[int, EnginePlace] = {}
        self._closed = False
        last = preparation.found.blocks[-1]
        lines = last.first_line + last.end - last.start  # at most
        self._out = bytearray(map(has_result, range(lines + 1)))  # by line: whether not to plan
        self._kept = frozenset(bad)  # nobody plans them, and they are handed out at the end
        for line in self._kept:
            if line < len(self._out):
                self._out[line] = 1
        self._first = first_lines(file, preparation.found.blocks, rules.max_line_bytes)
        self._open: dict[int, BatchLine | LineError] = {}
        self._started: list[int] = []
        self._ended: list[tuple[int, int | None]] = []
        self._aside: list[int] = []
        self._opened = False
        self._anew = False  # whether a plan was made again, of what had no result then
        self._deaths = 0
        self._open_at_the_end = 0
        self._rest: LineSource | None = None
        self._reading = threading.Lock()

    @property
    def left(self) -> RemainingWork:
        """Predicted work of what is planned and was not handed out, seconds."""
        taken = self.taken  # another thread may say that there is no plan any more
        if taken is None or self._rest is not None or self.paused:
            return RemainingWork(0.0, 0.0)
        return RemainingWork(max(taken.work.compute, 0.0), max(taken.work.memory, 0.0))

    @property
    def standing(self) -> Standing:
        """How far the job is, as the planner said last."""
        taken = self.taken
        if taken is None:
            return Standing(0, 0, None, self.left)
        prepared, planned, work = taken.prepared, taken.planned, taken.work
        everything = max(work.compute, 0.0) + max(work.memory, 0.0) + work.running + work.done
        share = ended = None
        if everything > 0:
            # What is not prepared yet is taken to be like what is.
            in_all = everything * max(self._preparation.found.lines / max(prepared, 1), 1.0)
            share = min((work.done + work.running / 2) / in_all, 1.0)
            ended = min(work.done / in_all, 1.0)
        if self._rest is not None:  # the planner says no more: those that ran then end alike
            running = len(self._open) / max(self._open_at_the_end, 1)
            share = 1 - running * (1 - (share or 0.0))
            ended = None if ended is None else 1 - running * (1 - ended)
        return Standing(prepared, planned, share, self.left, None if self._anew else ended)

    def next_lines(self) -> list[SizedLine] | None:
        """Return the next lines; see `LineSource`."""
        with self._reading:
            if self._rest is not None:
                return self._rest.next_lines()
            taken = self._take()
            if taken is None:
                self.taken = None  # whatever it was, it is no plan of what is left
            if taken is None or taken.ended:
                return self._begin_rest().next_lines()
            if taken.places:
                return self._read(taken.places, taken.engine)
            return self._next_first() if not taken.planned else None

    def tell(self) -> None:
        """Tell the planner what has ended, where no line is asked for: the job is paused, say."""
        with self._reading:
            if self._rest is None and self._opened and (self._started or self._ended):
                self._take(0)

    def answered(self, line: int, output_tokens: int | None) -> None:
        """Learn from a line that has its result; see `LineSource`."""
        self._open.pop(line, None)
        self._leave(line)
        if self._rest is not None:
            self._rest.answered(line, output_tokens)
        else:
            self._ended.append((line, output_tokens))

    def put_aside(self, line: int) -> None:
        """Keep no place in an engine for a line; see `LineSource`."""
        self._leave(line)
        self._aside.append(line)

    def close(self) -> None:
        """Nobody asks for lines any more: those without a result keep no place in an engine."""
        with self._reading:
            self._closed = True
            for line in [*self._engines]:
                self._leave(line)

    def _leave(self, line: int) -> None:
        place = self._engines.pop(line, None)
        if place is not None and self._rooms is not None:
            self._rooms.leave(place)

    def unanswered(self) -> Iterator[BatchLine | LineError]:
        """Yield the lines that have no result; see `LineSource`."""
        with self._reading:  # a call that nobody waits for any more may still hand lines out
            rest = self._rest or self._begin_rest()
            handed_out = list(self._open.values())
        yield from handed_out
        yield from rest.unanswered()

    def _take(self, most: int = _LINES) -> Taken | None:
        """Ask the planner for so many lines at ``most``; None if there can be no plan."""
        try:
            whole = self._preparation.wait(0.0)
        except Exception as error:  # of any kind: without a store there is only the file's order
            logger.error("The rest goes in the order of the file: %s", error)
            return None
        if not self._preparation.begun:
            return Taken([], False, 0, 0, JobWork())
        while True:
            started, ended = _all_of(self._started), _all_of(self._ended)
            aside = _all_of(self._aside)
            try:
                if not self._opened:
                    folder, out = self._preparation.folder, np.frombuffer(self._out, np.uint8)
                    self._planner.open(self._job, folder, out.astype(np.bool_))
                    self._opened = True
                rooms = None if self._rooms is None else self._rooms.now()
                news = News(started, ended, whole, aside)
                self.taken = self._planner.take(self._job, most, news, rooms)
            except PlannerDied as death:
                self._deaths += 1
                self._opened, self._anew = False, True
                if self._deaths >= _DEATHS:
                    logger.error("The rest goes in the order of the file: %s", death)
                    return None
                logger.warning("%s All that was not handed over is planned anew.", death)
                continue
            if self.taken.places:
                self._deaths = 0
            return self.taken

    def _read(self, places: list[Place], engine: int) -> list[SizedLine] | None:
        # All are read before one is handed out: a call that fails is made again.
        data = [read_bytes(self._file, one.offset, one.offset + one.length) for one in places]
        found = []
        for place, content in zip(places, data, strict=True):
            if self._is_out(place.line):
                continue
            for raw, _ in lines_of(content, place.line, self._rules.max_line_bytes):
                one = self._hand_out(raw, place.length)
                found.append(one._replace(prompts=partial(self._prompts, place)))
                if self._rooms is not None and not self._closed:
                    self._engines[raw.number] = self._rooms.take(engine)
                    found[-1] = found[-1]._replace(engine=engine)
        return found or None  # the input is shorter than it was: its end is read, and says so

    def _prompts(self, place: Place) -> Sequence[Tokens] | None:
        """The token ids of a line's prompts, None where only the engine can make them."""
        store = self._preparation.store
        rows = slice(place.row, place.row + MAX_PROMPTS)
        other = np.flatnonzero(store.column("line")[rows] != place.line)
        count = int(other[0]) if other.size else MAX_PROMPTS
        chosen = np.arange(place.row, min(place.row + count, store.ready))
        if not (store.column("flags")[chosen] & Flag.EXACT).all():
            return None
        return store.prompts(chosen)

    def _next_first(self) -> list[SizedLine] | None:
        """A few lines that no plan has ordered; None while enough of them are in the engine."""
        if len(self._open) >= FIRST_LINES:
            return None
        for lines in self._first:
            found = [
                self._hand_out(raw, len(raw.data or b""))
                for raw in lines
                if not self._is_out(raw.number)
            ]
            if found:
                self._started += [one.line.line or 0 for one in found]
                return found
        return None

    def _is_out(self, line: int) -> bool:
        """Whether a line is not to be handed out, or not again; of a file that has grown, too."""
        return line >= len(self._out) or bool(self._out[line])

    def _is_done_with(self, line: int) -> bool:
        """Whether a line is not to be read at the end: it has its result, or was handed out."""
        handed_out = line < len(self._out) and self._out[line] and line not in self._kept
        return self._has_result(line) or bool(handed_out)

    def _hand_out(self, raw: RawLine, size: int) -> SizedLine:
        line = check_line(raw, self._rules).line
        self._out[raw.number] = 1
        self._open[raw.number] = line
        return SizedLine(line, size)

    def _begin_rest(self) -> LineSource:
        """Read on front to back: what has no result and was not handed out."""
        self._planner.close(self._job)
        self._open_at_the_end = len(self._open)
        self._rest = self._file_order(self._is_done_with)
        return self._rest


def _all_of(news: list[T]) -> list[T]:
    """Take what is in a list to which another thread appends."""
    taken = news[:]
    del news[: len(taken)]
    return taken
