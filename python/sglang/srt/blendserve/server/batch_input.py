"""The input of one open batch, and whether it is still the one that was validated.

A batch's lines are read several times, by several starts of the server. Each reading must see the
same bytes: answers go by the numbers of lines. So their digest is kept beside the input from the
validation on. The file is open only while lines are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from sglang.srt.blendserve.answering.digest_reader import DigestReader
from sglang.srt.blendserve.answering.line_source import FileOrder, SizedLine
from sglang.srt.blendserve.batch_file.types import (
    BatchFileError,
    BatchLine,
    ErrorCode,
    LineError,
)
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines
from sglang.srt.blendserve.store.disk import write_whole
from sglang.srt.blendserve.store.workspace import Workspace

Lines = Iterator[BatchLine | LineError]

_PIECE = 1 << 20


class BatchInput:
    """The input lines of a batch. Everything here blocks on the disk."""

    def __init__(self, workspace: Workspace, rules: Rules) -> None:
        """Read the input in ``workspace``, by ``rules``."""
        self._workspace, self._rules = workspace, rules
        self._found: str | None = None

    def read(self) -> Lines:
        """Yield all lines, and at their end see that they are those of the reading noted.

        Raises:
            BatchFileError: the file as a whole cannot be taken, or has changed.
            OSError: it cannot be read.
        """
        with open(self._workspace.input, "rb") as stream:
            reader = DigestReader(stream)
            yield from parse_lines(reader, self._rules)
            self._compare(reader.digest)

    def check(self, total: int) -> None:
        """Read the input through to see that it is the one that was validated.

        Args:
            total: its lines, 0 where they have not been counted.

        Raises:
            BatchFileError: it has changed.
            OSError: it cannot be read.
        """
        if not self._workspace.digest.exists():  # validated by an older version, or not at all
            if total and self._count() != total:
                raise _changed()
            return
        content = blake2b(digest_size=32)
        with open(self._workspace.input, "rb") as stream:
            while piece := stream.read(_PIECE):
                content.update(piece)
        self._compare(content.hexdigest())

    def _count(self) -> int:
        try:
            return sum(1 for _ in self.read())
        except BatchFileError:
            return 0

    def note(self) -> None:
        """Keep what the first complete reading saw; every later one is compared with it.

        Raises:
            OSError: the disk is full.
        """
        if self._found is not None and not self._workspace.digest.exists():
            write_whole(self._workspace.digest, self._found.encode())

    def source(self, has_result: Callable[[int], bool]) -> FileOrder:
        """Return the lines that have no result; at their end it raises as `read` does."""
        stream = _SparingFile(self._workspace.input)
        reader = DigestReader(stream)

        def lines() -> Lines:
            yield from parse_lines(reader, self._rules)
            self._compare(reader.digest)

        return _BatchLines(stream, lines(), reader.tell, has_result)

    def _compare(self, digest: str) -> None:
        try:
            noted = self._workspace.digest.read_text()
        except FileNotFoundError:
            self._found = digest
            return
        if noted != digest:
            raise _changed()


class _SparingFile:
    """A file that is read front to back and open only between `open` and `close`."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0
        self._stream: BinaryIO | None = None

    def open(self) -> None:
        self._stream = open(self._path, "rb")  # noqa: SIM115 - `close` closes it
        self._stream.seek(self._position)

    def readline(self, size: int, /) -> bytes:
        assert self._stream is not None
        return self._stream.readline(size)

    def close(self) -> None:
        if self._stream is not None:
            self._position = self._stream.tell()
            self._stream.close()
            self._stream = None


class _BatchLines(FileOrder):
    """Lines of a file that is open only while the next ones are read."""

    def __init__(
        self,
        stream: _SparingFile,
        lines: Lines,
        position: Callable[[], int],
        has_result: Callable[[int], bool],
    ) -> None:
        super().__init__(lines, position, has_result)
        self._stream = stream

    def next_lines(self) -> list[SizedLine] | None:
        """As `FileOrder.next_lines`; after an `OSError` of the opening it may be called again."""
        self._stream.open()
        try:
            return super().next_lines()
        finally:
            self._stream.close()


def _changed() -> BatchFileError:
    return BatchFileError(
        LineError(
            code=ErrorCode.INPUT_CHANGED,
            message="The input file in the batch directory is not the one that was validated any "
            "more. Answers up to then are kept; upload the rest again as a new batch.",
            param="input_file_id",
        )
    )
