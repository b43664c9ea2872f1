"""An open batch as others see it: what is done of it, what is left, and who it is for."""

from __future__ import annotations

import time
from typing import NamedTuple

from sglang.srt.blendserve.answering.line_source import LineSource
from sglang.srt.blendserve.answering.loop import AnsweringLoop
from sglang.srt.blendserve.answering.pause import Pause
from sglang.srt.blendserve.dispatch.planned_lines import PlannedLines, Standing
from sglang.srt.blendserve.dispatch.remaining_time import RemainingTime
from sglang.srt.blendserve.server.gpu_time import Done
from sglang.srt.blendserve.store.batch_table import BatchRecord
from sglang.srt.blendserve.store.journal import ResultJournal
from sglang.srt.blendserve.store.tally import Tally


class Before(NamedTuple):
    """What a batch had answered and used when its plan was made, which knows the rest alone."""

    tally: Tally = Tally()
    gpu_seconds: float = 0.0


class OpenBatch:
    """What is known of a batch that has not ended. `BatchRun` carries it on.

    Attributes:
        broken: whether it was stopped by an error nobody had thought of.
        before: nothing where there is no plan.
    """

    def __init__(self, record: BatchRecord) -> None:
        """Nothing of it is done since ``record`` was written."""
        self._record = record
        self._source: LineSource | None = None
        self._journal: ResultJournal | None = None
        self._loop: AnsweringLoop | None = None
        self._priority, self._pause = record.priority, Pause(paused=record.paused_at is not None)
        self._time_left = RemainingTime()
        self._written = 0.0
        self._found_lines = 0  # until they are written down
        self.broken = False
        self.before = Before()

    @property
    def id(self) -> str:
        """The batch's."""
        return self._record.id

    @property
    def owner(self) -> str | None:
        """The user whose it is, None: the operator's."""
        return self._record.owner

    @property
    def expires_at(self) -> int:
        """Unix second at which the completion window ends."""
        return self._record.expires_at

    @property
    def lines_left(self) -> int:
        """Lines that have no result."""
        tally = self._record.tally
        done = tally.completed + tally.failed if self._journal is None else len(self._journal)
        return max(self.lines - done, 0)

    @property
    def tally(self) -> Tally:
        """What it has answered."""
        return self._record.tally if self._journal is None else self._journal.tally

    @property
    def in_flight(self) -> int:
        """Lines that are in the engines."""
        return 0 if self._loop is None else self._loop.in_flight

    @property
    def lines(self) -> int:
        """Lines that it has; 0 until they are counted."""
        return self._record.total or self._found_lines

    @property
    def begun(self) -> bool:
        """Whether something of it is answered, or in the engines."""
        return self.in_flight > 0 or self.tally.completed + self.tally.failed > 0

    @property
    def endpoint(self) -> str:
        """What all of its lines ask for."""
        return self._record.endpoint

    @property
    def priority(self) -> int:
        """As it was created with, or told since."""
        return self._priority

    @property
    def input_bytes(self) -> int:
        """Size of its input."""
        return self._record.input_bytes

    @property
    def output_caps(self) -> int | None:
        """Most tokens that its lines may have as output; None: not known, or one has no cap."""
        return self._record.output_caps

    @property
    def gpu_seconds(self) -> float:
        """What it has used of the GPUs, as far as it is written down."""
        return self._record.gpu_seconds + self._written

    @property
    def ended(self) -> float | None:
        """Part of the predicted work of its plan whose lines have ended; None: not known."""
        return None if self._standing is None else self._standing.ended

    @property
    def _standing(self) -> Standing | None:
        return self._source.standing if isinstance(self._source, PlannedLines) else None

    @property
    def done(self) -> Done:
        """How much of it is done."""
        share = None if self._standing is None else self._standing.share
        if share is not None:
            return Done.by_work(share)
        return Done.by_lines(1 - self.lines_left / self.lines if self.lines else 0.0)

    @property
    def journal_size(self) -> int | None:
        """Bytes of results that are on the disk; None: it has not begun to write any."""
        return None if self._journal is None else self._journal.size

    @property
    def seconds_left(self) -> float | None:
        """How long it will take by the rate of late, seconds; None: not known, or it waits."""
        return None if self.waits else self._time_left.seconds

    @property
    def waits(self) -> bool:
        """Whether it does not go on by itself: it is paused, or broken."""
        return self._pause.paused or self.broken

    def _note_time(self) -> None:
        if self._pause.paused:
            self._time_left.forget()
            return
        share = None if self._standing is None else self._standing.share
        if share is not None:
            self._time_left.note(time.monotonic(), share)
        else:
            self._time_left.note(time.monotonic(), self.done.share, by="lines")
