"""The input of a run: JSON lines, compressed or not, a table, or standard input, read more than
once.

A job's number of requests goes into every request id, so the file is read through once to count
and check it before the first request is sent, and a second time to send them; neither time is
more than some lines in memory.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from sglang.srt.blendserve.answering.digest_reader import DigestReader
from sglang.srt.blendserve.answering.line_source import FileOrder, InputScan, scan
from sglang.srt.blendserve.batch_file.lines import ByteStream
from sglang.srt.blendserve.batch_file.spool import new_spool
from sglang.srt.blendserve.batch_file.types import BatchFileError, BatchLine, LineError
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.tables import remote, request_file
from sglang.srt.blendserve.tables.data_error import DataError
from sglang.srt.blendserve.tables.request_file import GZIP_MAGIC


class BatchSource:
    """The input file. Use as a context manager.

    Attributes:
        name: what messages call it.
        digest: BLAKE2b of its bytes, after decompression, once `scan` has read them; a resumed run
            must find the same.
    """

    def __init__(self, path: str, rules: Rules) -> None:
        """Open ``path``, as `request_file.opened` does; ``-`` is standard input, which is first
        copied to a temporary file.

        Raises:
            RunFailure: it cannot be opened.
        """
        self.name = "standard input" if path == "-" else remote.shown(path)
        self._rules = rules
        self.digest = ""
        self._unpacked: IO[bytes] | None = None
        try:
            if path == "-":
                self._file: IO[bytes] = _spool_standard_input()
            else:
                self._file = request_file.opened(path, unpack=False)
            self._compressed = self._file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        except DataError as error:
            raise RunFailure(str(error)) from error
        except OSError as error:
            raise RunFailure(f"Cannot read {self.name}: {error.strerror or error}.") from error

    def __enter__(self) -> BatchSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._unpacked is not None:
            self._unpacked.close()

    def plain(self) -> Path:
        """Return where the input lies as bytes that can be read from anywhere, until the end of the
        context: what is compressed is unpacked into a temporary file, once.

        The path is that of a file descriptor of this process, which other processes of the user can
        open: whoever puts another file in the input's place changes nothing.

        Raises:
            OSError, EOFError: the disk is full, or the input has changed since `scan`.
        """
        if self._compressed and self._unpacked is None:
            unpacked = new_spool()
            try:
                self._file.seek(0)
                with gzip.GzipFile(fileobj=self._file) as packed:
                    shutil.copyfileobj(packed, unpacked)
                unpacked.flush()
            except BaseException:
                unpacked.close()
                raise
            self._unpacked = unpacked
        file = self._file if self._unpacked is None else self._unpacked
        return Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")

    def scan(self, has_result: Callable[[BatchLine | LineError], bool]) -> InputScan:
        """Read the input through once; see `line_source.scan`.

        Raises:
            RunFailure: it is empty, broken or too large as a whole; bad lines are no failure.
        """
        with self._reader() as reader:
            found = scan(self._parse(reader), has_result=has_result)
        self.digest = reader.digest
        return found

    @contextmanager
    def lines(self, has_result: Callable[[int], bool]) -> Iterator[FileOrder]:
        """Give the lines that have no result, after `scan`.

        At their end `FileOrder.next_lines` raises a `RunFailure` if the input has changed since.
        """
        with self._reader() as reader:
            yield FileOrder(self._checked(reader), reader.tell, has_result)

    def _checked(self, reader: DigestReader) -> Iterator[BatchLine | LineError]:
        yield from self._parse(reader)
        if self.digest != reader.digest:
            raise RunFailure(
                f"{self.name} has changed while it was read. The answers so far are those of its "
                "old and new lines mixed; run again with --overwrite."
            )

    def _parse(self, reader: DigestReader) -> Iterator[BatchLine | LineError]:
        try:
            yield from parse_lines(reader, self._rules)
        except BatchFileError as failure:
            raise RunFailure(f"{self.name}: {failure}") from failure

    @contextmanager
    def _reader(self) -> Iterator[DigestReader]:
        self._file.seek(0)
        if not self._compressed:
            yield DigestReader(self._file)
            return
        with gzip.GzipFile(fileobj=self._file) as unpacked:
            yield DigestReader(cast(ByteStream, unpacked))


def _spool_standard_input() -> IO[bytes]:
    if sys.stdin.isatty():
        raise RunFailure("Standard input is the terminal; pipe a JSONL file into it.")
    spool = new_spool()
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.flush()
    spool.seek(0)
    return spool
