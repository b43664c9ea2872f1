"""The lines of a job's input: read through once to check them, then a few at a time to answer."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from sglang.srt.blendserve.answering.stop import Stop, Stopped
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines
from sglang.srt.blendserve.pool.pool_request import Tokens

_LINES = 64
_LINES_LOOKED_AT = 1 << 16
_BYTES = 1 << 18
_MAX_LISTED = 100


class InputScan(NamedTuple):
    """What reading an input through has shown.

    Attributes:
        total: lines that are not blank.
        bad: how many of them are not valid requests.
        todo: valid requests that have no result yet.
        errors: the first hundred bad lines.
        bad_lines: numbers of all bad lines.
        last_line: number of the last line, blank lines counted.
        output_caps: most tokens that all valid requests may have as output; None: one has no cap.
    """

    total: int
    bad: int
    todo: int
    errors: list[LineError]
    bad_lines: Sequence[int] = ()
    last_line: int = 0
    output_caps: int | None = None


def scan(
    lines: Iterable[BatchLine | LineError],
    *,
    has_result: Callable[[BatchLine | LineError], bool] = lambda _: False,
    stop: Stop | None = None,
) -> InputScan:
    """Read an input through.

    Args:
        lines: those of the input; what reading them raises is raised here.
        has_result: whether a line has a result from before; asked once for each line, in order.
        stop: ends the reading early.

    Raises:
        Stopped: a stop was requested.
    """
    total = todo = last = 0
    caps: int | None = 0
    errors: list[LineError] = []
    bad = array("q")
    for line in lines:
        if stop is not None and stop.reason is not None:
            raise Stopped
        total += 1
        last = line.line or 0
        done = has_result(line)
        if isinstance(line, BatchLine):
            todo += not done
            cap = line.output_cap
            caps = None if caps is None or cap is None else caps + cap
            continue
        bad.append(line.line or 0)
        if len(errors) < _MAX_LISTED:
            errors.append(line)
    return InputScan(total, len(bad), todo, errors, bad, last, caps)


def read_input(path: Path, rules: Rules) -> Iterator[BatchLine | LineError]:
    """Yield the lines of a file.

    Raises:
        BatchFileError: the file as a whole cannot be taken.
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        yield from parse_lines(stream, rules)


class SizedLine(NamedTuple):
    """A line, and the bytes that were read for it.

    Attributes:
        prompts: returns the token ids of the line's prompts, as `Engine.execute` takes them;
            asked once, when the line goes into the engine, on the event loop. None: not known.
        engine: which of several it is for; None: any.
    """

    line: BatchLine | LineError
    size: int
    prompts: Callable[[], Sequence[Tokens] | None] | None = None
    engine: int | None = None


class LineSource(Protocol):
    """The lines of an input that have no result, in some order. Its methods may be called in any
    thread, `answered` also while another one runs."""

    def next_lines(self) -> list[SizedLine] | None:
        """Return the next lines, a few at a time; none at the end, None if they are not known yet.

        Raises:
            Exception: the input cannot be read on.
        """
        ...

    def answered(self, line: int, output_tokens: int | None) -> None:
        """The line of that number has its result. Returns at once.

        Args:
            line: its number.
            output_tokens: of all its answers, None where it has no answer to learn from.
        """
        ...

    def put_aside(self, line: int) -> None:
        """The line of that number was handed out, and goes to no engine before all others. Returns
        at once."""
        ...

    def unanswered(self) -> Iterator[BatchLine | LineError]:
        """Yield the lines that have no result, each at least once.

        Raises:
            Exception: the input cannot be read on.
        """
        ...


class FileOrder:
    """The lines of an input that have no result, front to back (`LineSource`).

    Memory: the lines that were handed out and are not answered.
    """

    def __init__(
        self,
        lines: Iterator[BatchLine | LineError],
        position: Callable[[], int],
        has_result: Callable[[int], bool],
    ) -> None:
        """Hand out ``lines``.

        Args:
            lines: all lines of the input that are not blank.
            position: returns how many bytes of the input have been read.
            has_result: whether the line of a number has a result; such a line is left out.
        """
        self._lines, self._tell, self._has_result = lines, position, has_result
        self._position = 0
        self._open: dict[int, BatchLine | LineError] = {}
        # Reading that nobody waits for any more ends before the next begins.
        self._reading = threading.Lock()

    def next_lines(self) -> list[SizedLine] | None:
        """Return the next lines, about 256 KiB and at most 64 of them; none at the end.

        Where many lines have their result it returns None now and then, so that whoever stops need
        not wait for the end of the file.

        Raises:
            Exception: the input cannot be read on.
        """
        found: list[SizedLine] = []
        room = _BYTES
        with self._reading:
            for _ in range(_LINES_LOOKED_AT):
                line = next(self._lines, None)
                if line is None:
                    return found
                size, self._position = self._tell() - self._position, self._tell()
                assert line.line is not None
                if not self._has_result(line.line):
                    self._open[line.line] = line
                    found.append(SizedLine(line, size))
                    room -= size
                    if room <= 0 or len(found) == _LINES:
                        return found
        return found or None

    def answered(self, line: int, output_tokens: int | None = None) -> None:
        """Forget the line of that number, which has its result; see `LineSource`."""
        self._open.pop(line, None)

    def put_aside(self, line: int) -> None:
        """Do nothing: no engine has a place for it."""

    def unanswered(self) -> Iterator[BatchLine | LineError]:
        """Yield the lines handed out that have no result, then those that were never read.

        Raises:
            Exception: the input cannot be read on.
        """
        yield from list(self._open.values())
        while (lines := self.next_lines()) != []:
            for found in lines or ():
                yield found.line
