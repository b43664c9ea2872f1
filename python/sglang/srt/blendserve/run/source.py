"""The input of a run: a JSONL file, compressed or not, or standard input, read more than once.

A job's number of requests goes into every request id, so the file is read through once to count
and check it before the first request is sent, and a second time to send them; neither time is
more than one line in memory.
"""

from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, cast

from sglang.srt.blendserve.batch_file.lines import ByteStream
from sglang.srt.blendserve.batch_file.types import BatchFileError, BatchLine, LineError
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines
from sglang.srt.blendserve.run.failure import RunFailure

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Scan:
    """What reading the input once has shown.

    Attributes:
        requests: valid lines.
        refused: lines that are not valid.
        digest: BLAKE2b of the bytes, after decompression; a resumed run must find the same.
    """

    requests: int
    refused: int
    digest: str


class BatchSource:
    """The input file. Use as a context manager."""

    def __init__(self, path: str, rules: Rules) -> None:
        """Open ``path``; ``-`` is standard input, which is first copied to a temporary file.

        Raises:
            RunFailure: it cannot be opened.
        """
        self.name = "standard input" if path == "-" else path
        self._rules = rules
        self._digest: str | None = None
        try:
            self._file: IO[bytes] = _spool_standard_input() if path == "-" else open_input(path)
            self._compressed = self._file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        except OSError as error:
            raise RunFailure(f"Cannot read {self.name}: {error.strerror or error}.") from error

    def __enter__(self) -> BatchSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def scan(self) -> Scan:
        """Read the input through once.

        Raises:
            RunFailure: it is empty, broken or too large as a whole; bad lines are no failure.
        """
        with self._reader() as reader:
            kinds = Counter(type(line) for line in self._parse(reader))
        self._digest = reader.digest
        return Scan(kinds[BatchLine], kinds[LineError], reader.digest)

    def lines(self) -> Iterator[BatchLine | LineError]:
        """Yield each line that is not blank, as `parse_lines` does.

        Raises:
            RunFailure: the input has changed since `scan`; raised after the last line.
        """
        with self._reader() as reader:
            yield from self._parse(reader)
        if self._digest not in (None, reader.digest):
            raise RunFailure(
                f"{self.name} has changed while it was read. The answers so far are those of its "
                "old and new lines mixed; run again with --overwrite."
            )

    def _parse(self, reader: _Reader) -> Iterator[BatchLine | LineError]:
        try:
            yield from parse_lines(reader, self._rules)
        except BatchFileError as failure:
            raise RunFailure(f"{self.name}: {failure}") from failure

    @contextmanager
    def _reader(self) -> Iterator[_Reader]:
        self._file.seek(0)
        if not self._compressed:
            yield _Reader(self._file)
            return
        with gzip.GzipFile(fileobj=self._file) as unpacked:
            yield _Reader(cast(ByteStream, unpacked))


class _Reader:
    """Computes the digest of what is read through it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._hash = blake2b(digest_size=32)

    def readline(self, size: int, /) -> bytes:
        data = self._stream.readline(size)
        self._hash.update(data)
        return data

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def open_input(path: str) -> IO[bytes]:
    """Open a regular file for reading bytes.

    Raises:
        OSError: there is none.
        RunFailure: it is a pipe or a device, which cannot be read twice.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise RunFailure(f"{path} is not a file. Give a .jsonl or .jsonl.gz file, or - to pipe.")
    return open(path, "rb")


def _spool_standard_input() -> IO[bytes]:
    if sys.stdin.isatty():
        raise RunFailure("Standard input is the terminal; pipe a JSONL file into it.")
    spool = tempfile.TemporaryFile(prefix="sglang-blendserve-")  # noqa: SIM115 - returned open
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.seek(0)
    return spool
