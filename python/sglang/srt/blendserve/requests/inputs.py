"""Where the lines of a store come from: a file that workers read, or a stream read for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from sglang.srt.blendserve.requests.line_blocks import ByteReader, FileScan, scan, spread
from sglang.srt.blendserve.requests.messages import Work


class _State(NamedTuple):
    size: int
    changed: int
    file: int


class Input(Protocol):
    """An input that can be read twice.

    Attributes:
        path: where workers find it, None if they cannot.
        in_order_because: why its lines are read front to back, None if they are not.
    """

    path: str | None
    in_order_because: str | None

    def scan(self) -> FileScan:
        """Read it through once."""
        ...

    def work(self, found: FileScan) -> Iterator[Work]:
        """Yield its blocks in the order in which they are to be prepared."""
        ...

    def unchanged(self) -> bool:
        """Whether it is as it was when it was scanned, as far as can be seen without reading."""
        ...


class PlainFile:
    """A file with bytes as they are, read from places spread over it."""

    in_order_because: str | None = None

    def __init__(self, path: str) -> None:
        """Take the file at ``path``, which workers open themselves."""
        self.path: str | None = path
        self._path = path
        self._before: _State | None = None

    def scan(self) -> FileScan:
        """Read it through once.

        Raises:
            OSError: it cannot be read.
        """
        self._before = self._state()
        with open(self._path, "rb") as file:
            return scan(file)

    def work(self, found: FileScan) -> Iterator[Work]:
        """Yield its blocks, those first that are spread evenly."""
        for number in spread(len(found.blocks)):
            yield Work(found.blocks[number], None)

    def unchanged(self) -> bool:
        """Whether size and time of change are as they were."""
        return self._state() == self._before

    def _state(self) -> _State:
        stat = os.stat(self._path)
        return _State(stat.st_size, stat.st_mtime_ns, stat.st_ino)


class Stream:
    """Bytes that can only be read front to back, like those that gzip unpacks."""

    path = None

    def __init__(
        self, opened: Callable[[], AbstractContextManager[ByteReader]], because: str
    ) -> None:
        """Take what ``opened`` gives, twice.

        Args:
            opened: returns the stream, at its start.
            because: what it is, as a message has it: "gzip", "standard input".
        """
        self._opened = opened
        self.in_order_because: str | None = (
            f"{because} is read front to back, so the first requests are those at its start and no "
            "sample of all"
        )
        self._whole = True

    def scan(self) -> FileScan:
        """Read it through once."""
        with self._opened() as stream:
            return scan(stream)

    def work(self, found: FileScan) -> Iterator[Work]:
        """Yield its blocks in order, each with its bytes."""
        with self._opened() as stream:
            for block in found.blocks:
                data = _exactly(stream, block.end - block.start)
                self._whole = self._whole and len(data) == block.end - block.start
                yield Work(block, data)

    def unchanged(self) -> bool:
        """Whether it was as long the second time."""
        return self._whole


def _exactly(stream: ByteReader, size: int) -> bytes:
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
