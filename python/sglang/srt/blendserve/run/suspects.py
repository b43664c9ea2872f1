"""What a run does when its engine dies: which lines are under suspicion, and whether to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.store.engine_record import End, EngineRecord


class Results(Protocol):
    """Knows the lines that have a result."""

    def __contains__(self, line: int, /) -> bool: ...


class Suspects:
    """The run's record of lines in the engine, beside its output. Use as a context manager.

    Attributes:
        record: the open record.
    """

    record: EngineRecord

    def __init__(self, path: Path, results: Results) -> None:
        """Keep the record in ``path``; ``results`` knows what is done."""
        self._path, self._results = path, results
        self._last: tuple[int, int] = (0, 0)

    def __enter__(self) -> Suspects:
        """Open the record. Lines in it were in the engine when a run before ended the hard way.

        Raises:
            RunFailure: it cannot be written.
        """
        try:
            self.record = EngineRecord(self._path)
            self._died(End.DOUBTFUL)
        except OSError as error:
            raise RunFailure(f"Cannot write {self._path}: {error.strerror}.") from error
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the record behind only if a later run needs it."""
        noted = {*self.record.suspects(), *self.record.inside()}
        if all(line in self._results for line in noted):
            self._path.unlink(missing_ok=True)

    def others(self, left: int) -> int:
        """Return how many of the lines that are ``left`` to do are not condemned."""
        suspects = self.record.suspects()
        condemned = [n for n in suspects if self.record.condemned(n) and n not in self._results]
        return left - len(condemned)

    def engine_died(self) -> int:
        """Take the lines that are in the engine for suspects; return how many they are."""
        return self._died(End.ENGINE_DIED)

    def _died(self, end: End) -> int:
        lines = [line for line in self.record.inside() if line not in self._results]
        condemned = self.record.died(lines, len(lines), end)
        self._last = (len(lines), len(condemned))
        return len(lines)

    def __str__(self) -> str:
        lines, condemned = self._last
        if condemned:
            return "The line that was alone in it becomes an error line"
        if not lines:
            return "No line was in it"
        most = (lines + 1) // 2
        return f"{lines} lines were in it; they go last, at most {most} at a time"


class Restarts:
    """Whether to start another engine: not if the last few have led nowhere."""

    def __init__(self, most: int) -> None:
        """Allow ``most`` restarts in a row without progress."""
        self._most, self._used = most, 0
        self._answered = self._group = 0

    def lead_on(self, answered: int, group: int) -> bool:
        """The engine has died; return whether another one is to be started.

        Args:
            answered: lines that the run has got an answer to. Error lines do not count: an engine
                that dies of every line would condemn one after the other.
            group: lines that were in the engine. Fewer than the last time are progress, too.
        """
        progress = answered > self._answered or 0 < group < self._group
        self._answered, self._group = answered, group
        self._used = 1 if progress else self._used + 1
        return self._used <= self._most

    def __str__(self) -> str:
        return f"starting the engine again ({self._used} of {self._most} without progress)"
