"""Lines from places spread over a file, for an engine that waits for the first plan."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sglang.srt.blendserve.batch_file.lines import RawLine
from sglang.srt.blendserve.requests.line_blocks import Block, lines_of, spread

_LINES_A_BLOCK = 4
"""Lines that are taken from one place: neighbours are much alike, and a few cost one reading."""


def first_lines(
    file: Path, blocks: Sequence[Block], max_line_bytes: int
) -> Iterator[list[RawLine]]:
    """Yield a few lines from each place of a file, of places spread evenly over it.

    Args:
        blocks: all of the file.
        max_line_bytes: a longer line has no data, as in `batch_file.lines.read_lines`.

    Raises:
        OSError: the file cannot be read.
    """
    for number in spread(len(blocks)):
        block = blocks[number]
        found = []
        for raw, _ in lines_of(read_bytes(file, *block[1:3]), block.first_line, max_line_bytes):
            found.append(raw)
            if len(found) == _LINES_A_BLOCK:
                break
        yield found


def read_bytes(file: Path, start: int, end: int) -> bytes:
    """Return the bytes of a file from ``start`` to before ``end``, fewer where it is shorter.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb", buffering=0) as opened:
        parts = []
        while start < end and (part := os.pread(opened.fileno(), end - start, start)):
            parts.append(part)
            start += len(part)
    return b"".join(parts)
