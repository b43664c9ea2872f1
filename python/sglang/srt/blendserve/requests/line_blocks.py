"""A file of lines as blocks that can be read in any order, each knowing its first line's number.

`scan` reads the file once, at the speed of the disk, and parses nothing. `spread` is the order in
which blocks are read: whatever has been read lies evenly over the file, so that the first few
thousand lines are a sample of all, also where a file is sorted by source.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np

from sglang.srt.blendserve.batch_file.lines import ByteStream, RawLine

_BLOCK_BYTES = 1 << 16
"""About the size of a block; one that holds a longer line is longer."""

_READ_BYTES = 1 << 20
_BLANK = b" \t\r\n"
_BLANK_BYTES = np.frombuffer(_BLANK, dtype=np.uint8)
_NEWLINE = 10


class ByteReader(ByteStream, Protocol):
    """What is needed of a file to scan it."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; none at the end."""
        ...


class Block(NamedTuple):
    """Some whole lines of a file.

    Attributes:
        number: from 0, in the order of the file.
        start, end: bytes of the file.
        first_line: number of the first line, from 1, blank lines counted.
    """

    number: int
    start: int
    end: int
    first_line: int


@dataclass(slots=True)
class FileScan:
    """What reading a file of lines through has shown.

    Attributes:
        blocks: all of the file, in order.
        lines: lines that are not blank.
        size: bytes.
        digest: BLAKE2b of its bytes, as hexadecimal digits.
    """

    blocks: list[Block] = field(default_factory=list)
    lines: int = 0
    size: int = 0
    digest: str = ""


def scan(stream: ByteReader, block_bytes: int = _BLOCK_BYTES) -> FileScan:
    """Read a file of lines through, from its start.

    A line ends with LF, the last one may end with the file. Memory: a block, an entry for each.

    Raises:
        OSError: it cannot be read.
    """
    found, digest, first = FileScan(), blake2b(), 1
    while piece := stream.read(block_bytes):
        start = found.size
        lines, open_line = _count(piece.removeprefix(codecs.BOM_UTF8) if not start else piece)
        newlines = piece.count(b"\n")
        while piece:
            digest.update(piece)
            found.size += len(piece)
            if piece.endswith(b"\n"):
                break
            # The rest of a line that goes on, which may be of any length.
            piece = stream.readline(_READ_BYTES)
            newlines += piece.endswith(b"\n")
            open_line = open_line or bool(piece.strip(_BLANK))
        found.blocks.append(Block(len(found.blocks), start, found.size, first))
        found.lines += lines + open_line
        first += newlines
    found.digest = digest.hexdigest()
    return found


def _count(piece: bytes) -> tuple[int, bool]:
    """Return how many whole lines are not blank, and whether what follows them is not."""
    data = np.frombuffer(piece, dtype=np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    begins = np.concatenate(([0], ends[:-1] + 1)) if ends.size else ends
    # A line of JSON begins with a brace: nearly none is looked at.
    suspects = np.flatnonzero(np.isin(data[begins], _BLANK_BYTES)).tolist()
    blank = sum(not piece[begins[i] : ends[i]].strip(_BLANK) for i in suspects)
    tail = piece[int(ends[-1]) + 1 :] if ends.size else piece
    return int(ends.size) - blank, bool(tail.strip(_BLANK))


def spread(count: int) -> list[int]:
    """Return 0 to ``count`` - 1, the first of them evenly spread, whatever number one takes.

    The van der Corput sequence: 0, 1/2, 1/4, 3/4, 1/8, ... of the way through.
    """
    if count < 2:
        return list(range(count))
    bits = (count - 1).bit_length()
    places = np.arange(1 << bits, dtype=np.int64)
    reversed_places = np.zeros_like(places)
    for bit in range(bits):
        reversed_places |= ((places >> bit) & 1) << (bits - 1 - bit)
    return [int(place) for place in reversed_places if place < count]


def lines_of(data: bytes, first_line: int, max_line_bytes: int) -> Iterator[tuple[RawLine, int]]:
    """Yield the lines of a block that are not blank, with where in it they start.

    Args:
        data: the block's bytes.
        first_line: number of its first line; at 1 a UTF-8 byte order mark is dropped.
        max_line_bytes: a longer line has no data, as in `batch_file.lines.read_lines`.
    """
    place = 0
    for number, piece in enumerate(_split(data)):
        line = first_line + number
        content = piece.removeprefix(codecs.BOM_UTF8) if line == 1 else piece
        content = content.strip(_BLANK)
        room = max_line_bytes + len(b"\r\n")
        cut = not piece[:room].endswith(b"\n") and len(piece) > max_line_bytes
        if cut or len(content) > max_line_bytes:
            yield RawLine(line, None), place
        elif content:
            yield RawLine(line, content), place
        place += len(piece)


def _split(data: bytes) -> list[bytes]:
    """Return the lines of a block, each with its LF."""
    lines = data.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])
