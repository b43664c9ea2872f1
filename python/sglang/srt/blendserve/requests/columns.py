"""The files of a request store: a column each, all token ids in one, and what makes them whole.

Row ``i`` of every column is one prompt of one line. `ColumnWriter` appends rows by position, so
that what a full disk has cut short is written again in the same place. A column is read through a
memory map and never written through one: on a full disk that would end the process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from enum import IntFlag
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.store.disk import open_private

Array = NDArray[Any]

COLUMNS: Mapping[str, np.dtype[Any]] = {
    "offset": np.dtype(np.int64),
    "length": np.dtype(np.int32),
    "cap": np.dtype(np.int32),
    "known": np.dtype(np.int32),
    "namespace": np.dtype(np.int32),
    "choices": np.dtype(np.int32),
    "prompt": np.dtype(np.int32),
    "model": np.dtype(np.int32),
    "line": np.dtype(np.int64),
    "byte_offset": np.dtype(np.int64),
    "byte_length": np.dtype(np.int32),
    "flags": np.dtype(np.uint8),
}
"""What each row has:

- ``offset``: where its token ids start, tokens from the start of their file
- ``length``: tokens of the prompt; estimated where the row has no token ids
- ``cap``: most tokens of an answer, -1 if only the context limits it
- ``known``: tokens of an answer where they are known beforehand (``ignore_eos``), else -1
- ``namespace``: number of its namespace; prompts of different ones share no prefix
- ``choices``: answers to it (``n``)
- ``prompt``: which prompt of its line it is, from 0
- ``model``: number of the model that its line names, 0 for any
- ``line``: number of its line, from 1, blank lines counted
- ``byte_offset``, ``byte_length``: its line's place in the input, after decompression
- ``flags``: `Flag`
"""

ROW_BYTES = sum(dtype.itemsize for dtype in COLUMNS.values())
TOKEN = np.dtype(np.int32)
TOKENS_FILE = "tokens.i32"
READY_FILE = "ready"
ERRORS_FILE = "errors.jsonl"
NAMES_FILE = "names.jsonl"


class Flag(IntFlag):
    """What a row is, in its ``flags``."""

    EXACT = 1
    """The row has the token ids that the engine would make. Without it, only the engine can."""
    REFUSED = 2
    """The endpoint refuses its line: the answer is status 400."""
    BAD = 4
    """The line is not a valid request."""
    HELD = 8
    """The line names another model than most; whether it may is known when all lines are."""
    MEDIA = 16
    """The row has token ids as the prefix cache has them, others for other images, videos and
    recordings. The engine makes its own."""


HAS_TOKENS = int(Flag.EXACT | Flag.MEDIA)
"""A row with one of these has token ids."""

UNUSABLE = int(Flag.REFUSED | Flag.BAD | Flag.HELD)
"""A row with one of these is not for the engine, or not yet."""


def column_file(name: str) -> str:
    """Return the name of a column's file."""
    return f"{name}.{COLUMNS[name].name}"


def all_files() -> list[str]:
    """Return the names of the files that a whole store has, besides its seal."""
    return [READY_FILE, TOKENS_FILE, ERRORS_FILE, NAMES_FILE, *map(column_file, COLUMNS)]


class ColumnWriter:
    """Writes the columns of a new store. One writer, one thread.

    Attributes:
        rows: how many have been written.
        tokens: how many token ids have been.
    """

    def __init__(self, folder: Path) -> None:
        """Make empty files in ``folder``; what they held is gone.

        Raises:
            OSError: they cannot be made.
        """
        self.rows = self.tokens = 0
        self._checksum = 0
        self._ends = {ERRORS_FILE: 0, NAMES_FILE: 0}
        self._files: dict[str, int] = {}
        try:
            for name in all_files():
                self._files[name] = open_private(folder / name, os.O_RDWR | os.O_TRUNC)
            self._publish()
        except BaseException:
            self.close()
            raise

    def append(self, columns: Mapping[str, Array], tokens: Array) -> None:
        """Write rows, and let readers see them. After an error the same call may be tried again.

        Args:
            columns: (n,) arrays for all `COLUMNS` but ``offset``, in their types.
            tokens: the token ids of the rows, one after another; rows without `HAS_TOKENS` have
                none.

        Raises:
            OSError: the disk takes no data.
        """
        count = len(columns["line"])
        held = np.where(columns["flags"] & HAS_TOKENS, columns["length"], 0)
        offsets = self.tokens + np.cumsum(held, dtype=np.int64) - held
        assert int(held.sum()) == len(tokens)
        self._write(TOKENS_FILE, tokens.astype(TOKEN, copy=False), self.tokens * TOKEN.itemsize)
        for name, dtype in COLUMNS.items():
            given = offsets if name == "offset" else columns[name]
            assert (given.dtype, given.shape) == (dtype, (count,)), name
            self._write(column_file(name), given, self.rows * dtype.itemsize)
        self._checksum = zlib.crc32(tokens.astype(TOKEN, copy=False).data, self._checksum)
        self.rows += count
        self.tokens += len(tokens)
        self._publish()

    def append_text(self, name: str, lines: bytes) -> None:
        """Append to `ERRORS_FILE` or `NAMES_FILE`. After an error it may be tried again.

        Raises:
            OSError: the disk takes no data.
        """
        self._write(name, lines, self._ends[name])
        self._ends[name] += len(lines)

    def set_flags(self, rows: Array, flags: Array) -> None:
        """Write the flags of rows anew.

        Raises:
            OSError: the disk takes no data.
        """
        for row, flag in zip(rows.tolist(), flags.astype(np.uint8).tolist(), strict=True):
            self._write(column_file("flags"), bytes([flag]), row)

    def read(self, name: str) -> Array:
        """Return a copy of a column."""
        size = self.rows * COLUMNS[name].itemsize
        return np.frombuffer(_read(self._files[column_file(name)], size), COLUMNS[name]).copy()

    def sync(self) -> dict[str, tuple[int, int]]:
        """Make all of it last, and return size and checksum of each file.

        Raises:
            OSError: the disk is full or fails.
        """
        found = {}
        for name, fd in self._files.items():
            os.fsync(fd)
            size = os.fstat(fd).st_size
            known = name == TOKENS_FILE
            found[name] = (size, self._checksum if known else _checksum_of(fd, size))
        return found

    def close(self) -> None:
        """Close the files. Calling it twice does nothing."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _publish(self) -> None:
        self._write(READY_FILE, self.rows.to_bytes(8, "little"), 0)

    def _write(self, name: str, data: bytes | Array, position: int) -> None:
        view = memoryview(data if isinstance(data, bytes) else data.tobytes())
        while view:
            written = os.pwrite(self._files[name], view, position)
            view, position = view[written:], position + written


def _read(fd: int, size: int) -> bytes:
    parts = []
    position = 0
    while position < size and (part := os.pread(fd, size - position, position)):
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def _checksum_of(fd: int, size: int) -> int:
    checksum = position = 0
    while position < size and (part := os.pread(fd, min(1 << 24, size - position), position)):
        checksum, position = zlib.crc32(part, checksum), position + len(part)
    return checksum


def checksum_of(path: Path) -> tuple[int, int]:
    """Return size and checksum of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return size, _checksum_of(file.fileno(), size)
