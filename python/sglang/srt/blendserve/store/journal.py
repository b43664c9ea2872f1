"""The append-only journal of one batch's results.

One record a line: number of the input line, outcome, four token counts, CRC-32 and the result
line itself as it will stand in the output (``o``) or error (``e``) file::

    12 o 35 0 17 0 9f3ac1d2 {"id":"batch_req_...","custom_id":...}

Results are taken one by one and written as a group that is synced as a whole; only then are they
counted. After a crash every record that is whole counts, and what stands behind the last of them is
cut: it was never counted, and its requests run again. A record that was damaged later loses one
result, not those behind it.

The file is open only while it is read or written, so that thousands of open batches need no more
file descriptors than a few.
"""

from __future__ import annotations

import logging
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sglang.srt.blendserve.store.disk import open_private
from sglang.srt.blendserve.store.line_result import LineResult
from sglang.srt.blendserve.store.tally import Tally

logger = logging.getLogger(__name__)

_ABSENT = -1


class ResultJournal:
    """The results of one batch, at most one for each input line.

    Memory: 8 bytes for each input line, and the results that are not synced yet; the others stay
    on the disk.

    Attributes:
        tally: sum over all results on the disk.
    """

    def __init__(self, path: Path) -> None:
        """Read the journal, creating it if need be, and cut off what a crash left unfinished.

        Raises:
            OSError: it cannot be read or written.
        """
        self.tally = Tally()
        self._path = path
        self._offsets = array("q")
        self._unsynced: dict[int, LineResult] = {}
        fd = open_private(path, os.O_RDWR)
        try:
            self._end = self._recover(fd)
            size = os.fstat(fd).st_size
            if size > self._end:
                logger.warning("%s: cut %d bytes of an unfinished write", path, size - self._end)
                os.ftruncate(fd, self._end)
        finally:
            os.close(fd)

    def __contains__(self, line: int) -> bool:
        return self._is_synced(line) or line in self._unsynced

    def __len__(self) -> int:
        """How many results are on the disk."""
        return self.tally.completed + self.tally.failed

    @property
    def size(self) -> int:
        """Bytes of it that are on the disk; what stands behind is being written."""
        return self._end

    def lines(self) -> Iterator[int]:
        """Yield the numbers of the input lines that have a result on the disk, ascending."""
        return (line for line, offset in enumerate(self._offsets) if offset != _ABSENT)

    def append(self, results: Sequence[LineResult]) -> None:
        """Take results for the next `sync`; until then they survive no crash.

        Raises:
            ValueError: a line has a result already; none of them was taken.
        """
        lines = [result.line for result in results]
        if len(set(lines)) < len(lines) or any(line in self for line in lines):
            raise ValueError("an input line cannot have two results")
        self._unsynced.update(zip(lines, results, strict=True))

    def sync(self) -> None:
        """Write what was appended as one group and sync it; then it survives any crash.

        May run in one thread while another appends.

        Raises:
            OSError: the disk is full or failing; the file is as it was before, call it again.
        """
        group = list(self._unsynced.values())
        if not group:
            return
        records = [_encode(result) for result in group]
        with self._open(os.O_RDWR) as fd:
            try:
                _write_at(fd, b"".join(records), self._end)
                os.fdatasync(fd)
            except OSError:
                os.ftruncate(fd, self._end)
                raise
        for result, record in zip(group, records, strict=True):
            self._remember(result.line, self._end, result.tally)
            self._end += len(record)
            del self._unsynced[result.line]

    def results(self) -> Iterator[LineResult]:
        """Yield the results on the disk in the order of the input's lines.

        Raises:
            OSError: as `read`.
        """
        with self._open(os.O_RDONLY) as fd:
            for line in self.lines():
                yield self._read(fd, line)

    def read(self, line: int) -> LineResult:
        """Return the result of an input line.

        Raises:
            KeyError: it has none on the disk.
            OSError: the disk fails, or what stands there is not what was written.
        """
        if not self._is_synced(line):
            raise KeyError(line)
        with self._open(os.O_RDONLY) as fd:
            return self._read(fd, line)

    @contextmanager
    def _open(self, flags: int) -> Iterator[int]:
        fd = os.open(self._path, flags | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _read(self, fd: int, line: int) -> LineResult:
        result = decode(_read_record(fd, self._offsets[line]))
        if result is None or result.line != line:
            raise OSError(f"the result of line {line} in the journal is damaged")
        return result

    def _is_synced(self, line: int) -> bool:
        return line < len(self._offsets) and self._offsets[line] != _ABSENT

    def _recover(self, fd: int) -> int:
        """Read all good records; return where the last of them ends (bytes)."""
        position = end = damaged = broken = 0
        with open(os.dup(fd), "rb") as stream:
            for record in stream:
                result = decode(record)
                if result is None or result.line in self:
                    broken += 1
                else:
                    self._remember(result.line, position, result.tally)
                    end, damaged = position + len(record), broken
                position += len(record)
        if damaged:
            logger.error(
                "%s: %d records are damaged; their requests run again", self._path, damaged
            )
        return end

    def _remember(self, line: int, offset: int, tally: Tally) -> None:
        missing = line + 1 - len(self._offsets)
        if missing > 0:
            self._offsets.extend((_ABSENT,) * missing)
        self._offsets[line] = offset
        self.tally = self.tally.plus(tally)


def _encode(result: LineResult) -> bytes:
    tally = result.tally
    outcome = "o" if result.succeeded else "e"
    head = (
        f"{result.line} {outcome} {tally.input_tokens} {tally.cached_tokens} "
        f"{tally.output_tokens} {tally.reasoning_tokens}"
    ).encode()
    return b"%b %08x %b" % (head, zlib.crc32(head + result.data), result.data)


def decode(record: bytes) -> LineResult | None:
    """Return the result, or None when the record is not whole."""
    fields = record.split(b" ", 7)
    if len(fields) != 8 or not record.endswith(b"\n"):
        return None
    *head, check, data = fields
    if b"%08x" % zlib.crc32(b" ".join(head) + data) != check:
        return None
    line, outcome, *tokens = head
    succeeded = outcome == b"o"
    tally = Tally(int(succeeded), int(not succeeded), *(int(token) for token in tokens))
    return LineResult(int(line), tally, data)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _read_record(fd: int, offset: int) -> bytes:
    pieces = []
    while piece := os.pread(fd, 1 << 16, offset):
        end = piece.find(b"\n") + 1
        pieces.append(piece[:end] if end else piece)
        if end:
            break
        offset += len(piece)
    return b"".join(pieces)
