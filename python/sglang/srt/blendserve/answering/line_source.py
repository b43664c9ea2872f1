"""The lines of a batch's input, a few at a time, for the event loop to take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import NamedTuple

from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines

_LINES = 64
_BYTES = 1 << 18
_MAX_LISTED = 100


class SizedLine(NamedTuple):
    """A line and its bytes in the input."""

    line: BatchLine | LineError
    size: int


class Scan(NamedTuple):
    """What validation finds.

    Attributes:
        total: requests in the file.
        bad: how many of them are not valid.
        errors: the first hundred bad ones.
    """

    total: int
    bad: int
    errors: list[LineError]


class Interrupted(Exception):
    """Reading was given up because it was told to."""


class LineSource:
    """Reads an input front to back, skipping lines that have a result. One thread at a time."""

    def __init__(self, path: Path, rules: Rules, has_result: Callable[[int], bool]) -> None:
        """Open the input.

        Raises:
            OSError: it cannot be read.
        """
        self._stream = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._lines = parse_lines(self._stream, rules)
        self._has_result = has_result
        self._position = 0

    def next_lines(self) -> list[SizedLine]:
        """Return the next lines, about 256 KiB and at most 64 of them; none at the end.

        Raises:
            BatchFileError: the input cannot be read on.
        """
        found: list[SizedLine] = []
        room = _BYTES
        while room > 0 and len(found) < _LINES:
            line = next(self._lines, None)
            if line is None:
                break
            size, self._position = self._stream.tell() - self._position, self._stream.tell()
            assert line.line is not None
            if not self._has_result(line.line):
                found.append(SizedLine(line, size))
                room -= size
        return found

    def close(self) -> None:
        """Close the input."""
        self._stream.close()


def scan(path: Path, rules: Rules, interrupt: Event) -> Scan:
    """Validate a whole input.

    Raises:
        BatchFileError: the file as a whole cannot be taken.
        Interrupted: ``interrupt`` was set.
        OSError: it cannot be read.
    """
    total = bad = 0
    errors: list[LineError] = []
    for line in read_input(path, rules):
        if interrupt.is_set():
            raise Interrupted
        total += 1
        if isinstance(line, LineError):
            bad += 1
            if len(errors) < _MAX_LISTED:
                errors.append(line)
    return Scan(total, bad, errors)


def read_input(path: Path, rules: Rules) -> Iterator[BatchLine | LineError]:
    """Yield the lines of an input.

    Raises:
        BatchFileError: the file as a whole cannot be taken.
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        yield from parse_lines(stream, rules)
