"""Split a stream of bytes into numbered lines without ever holding more than one."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from sglang.srt.blendserve.batch_file.types import BatchFileError, ErrorCode, LineError

_BLANK = b" \t\r\n"
_SKIP_BYTES = 1 << 16


class ByteStream(Protocol):
    """What is needed of a file open for reading bytes, a gzip file or standard input."""

    def readline(self, size: int, /) -> bytes:
        """Return the bytes up to the next newline, at most ``size``; none at the end."""
        ...


class RawLine(NamedTuple):
    """One line that is not blank.

    Attributes:
        number: from 1, blank lines counted.
        data: its bytes without line end and surrounding blanks; None when it is too long.
    """

    number: int
    data: bytes | None


def read_lines(
    stream: ByteStream, *, max_line_bytes: int, max_bytes: int | None = None
) -> Iterator[RawLine]:
    """Yield the lines of ``stream`` that are not blank, in order.

    A line ends with LF or CRLF, the last one may end with the stream; a UTF-8 byte order mark
    before the first is dropped. A line of more than ``max_line_bytes`` bytes is skipped over and
    yielded without its data, so memory stays below twice that limit.

    Raises:
        BatchFileError: the stream is longer than ``max_bytes`` (after decompression, if it is
            compressed), or reading it fails.
    """
    number = 0
    total = 0
    while piece := _readline(stream, max_line_bytes + len(b"\r\n"), number + 1):
        number += 1
        total += len(piece)
        data: bytes | None = piece.removeprefix(codecs.BOM_UTF8) if number == 1 else piece
        assert data is not None
        data = data.strip(_BLANK)
        if not piece.endswith(b"\n") and len(piece) > max_line_bytes:
            total += _skip_line(stream, number)
            data = None
        elif len(data) > max_line_bytes:
            data = None
        if max_bytes is not None and total > max_bytes:
            raise BatchFileError(
                LineError(
                    code=ErrorCode.FILE_TOO_LARGE,
                    message=f"The file is larger than {max_bytes} bytes. Split it.",
                    line=number,
                )
            )
        if data is None or data:
            yield RawLine(number, data)


def _skip_line(stream: ByteStream, number: int) -> int:
    """Read on to the end of the line; return the bytes read."""
    skipped = 0
    while piece := _readline(stream, _SKIP_BYTES, number):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _readline(stream: ByteStream, limit: int, number: int) -> bytes:
    try:
        return stream.readline(limit)
    except (OSError, EOFError, zlib.error) as error:  # the last two: broken gzip
        raise BatchFileError(
            LineError(
                code=ErrorCode.UNREADABLE_FILE,
                message=f"The file cannot be read beyond line {number - 1}: {error}",
                line=number,
            )
        ) from error
