"""The lines of a batch file or of its results, wherever they are and in whatever form."""

from __future__ import annotations

import gzip
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from sglang.srt.blendserve.batch_file.spool import spooled
from sglang.srt.blendserve.tables import answer_rows, parquet, remote, request_rows
from sglang.srt.blendserve.tables.data_error import DataError

GZIP_MAGIC = b"\x1f\x8b"
"""What a file begins with that gzip has packed."""


def opened(path: str, *, unpack: bool = True) -> IO[bytes]:
    """Open a batch file as JSON lines that can be read again and again: JSON lines, packed by gzip
    or not, a table, or a folder of tables, here or where `remote` goes.

    What is no plain file of lines on this machine becomes a temporary one.

    Args:
        unpack: else what gzip has packed stays as it is.

    Raises:
        DataError: it cannot be read; the message says which file and why.
        OSError: there is no such file, or the disk is full.
    """
    return _opened(path, _request_lines, unpack)


def opened_answers(path: str) -> IO[bytes]:
    """Open an output or error file, as `opened` does a batch file."""
    return _opened(path, _answer_lines, unpack=True)


def _opened(path: str, of_table: Callable[[str], Iterator[bytes]], unpack: bool) -> IO[bytes]:
    with remote.fetched(path) as local:
        if parquet.is_table(local):
            return spooled(of_table(local))
        file = _regular(local)
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        if not (packed and unpack):
            return file
        with file:
            try:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return spooled(unpacked)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(f"{local} cannot be unpacked: {error}") from error


def _regular(path: str) -> IO[bytes]:
    """Open a file; what a pipe gives becomes a temporary one."""
    kind = Path(path).stat().st_mode
    if stat.S_ISFIFO(kind):
        with open(path, "rb") as pipe:
            return spooled(pipe)
    if not stat.S_ISREG(kind):
        what = "a folder without .parquet files" if stat.S_ISDIR(kind) else "not a file"
        raise DataError(
            f"{path} is {what}. Give a .jsonl, .jsonl.gz or .parquet file, a folder of .parquet "
            "files, or - to pipe."
        )
    return open(path, "rb")  # it stays until it is closed, whatever becomes of its name


def _request_lines(path: str) -> Iterator[bytes]:
    if names := request_rows.unused(parquet.columns_of(path)):
        print(request_rows.left_out(path, names), file=sys.stderr)
    yield from request_rows.lines_of(parquet.rows_of(path))


def _answer_lines(path: str) -> Iterator[bytes]:
    missing = {"response", "status_code"} - {*parquet.columns_of(path)}
    if missing:
        raise DataError(f"{path} holds no answers: it has no column {', '.join(sorted(missing))}")
    yield from answer_rows.lines_of(parquet.rows_of(path))
