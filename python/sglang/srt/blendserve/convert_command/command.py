"""Convert requests and answers between JSON lines and Parquet.

What is in the input decides: requests become requests, answers become answers.

    sglang-blendserve convert -i requests.parquet -o requests.jsonl
    sglang-blendserve convert -i out.jsonl -i out.errors.jsonl -o answers.parquet

A table of requests has a column `body`, with JSON or structs, or `messages`, `prompt` or `input`
with the parameters of each request as further columns (max_tokens, temperature, ...). Columns
`custom_id` and `url` are taken if they are there. A folder of Parquet files is read by name.

A table of answers has the columns id, custom_id, status_code, text, finish_reason, prompt_tokens,
completion_tokens, cached_tokens, error_code, error_message and some more, always of the same types,
and the whole answer as JSON in `response`.

Exit status: 0 converted, 1 an input cannot be read or the output not written, 2 wrong flags.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from sglang.srt.blendserve.batch_file.whole_file import beside, put_in_place
from sglang.srt.blendserve.tables import (
    answer_rows,
    parquet,
    remote,
    request_file,
    request_rows,
)
from sglang.srt.blendserve.tables.data_error import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "-i",
        "--input",
        required=True,
        action="append",
        metavar="FILE",
        help=".jsonl, .jsonl.gz, .parquet or a folder of .parquet, here or at s3://, gs://, hf://, "
        "https://; several are put one after another",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help=".jsonl or .parquet, here or in an object store",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")


def main(args: argparse.Namespace) -> int:
    """Convert; return the exit status."""
    try:
        rows = _to_remote(args) if remote.is_remote(args.output) else _to_file(args)
    except (DataError, OSError) as error:  # each says which file
        print(f"convert: {error}", file=sys.stderr)
        return 1
    print(f"{remote.shown(args.output)}: {rows:,} rows")
    return 0


def _to_remote(args: argparse.Namespace) -> int:
    """Make the file here, and put it where it belongs."""
    if args.output in args.input:
        raise DataError(f"{remote.shown(args.output)} is an input: it would be written over")
    if remote.exists(args.output) and not args.overwrite:
        raise DataError(f"{remote.shown(args.output)} is there already; --overwrite replaces it")
    with tempfile.TemporaryDirectory(prefix="sglang-blendserve-") as folder:
        made = Path(folder) / remote.name_of(args.output)
        rows = _convert(args.input, made)
        remote.put(made, args.output)
    return rows


def _to_file(args: argparse.Namespace) -> int:
    output = Path(args.output)
    for path in args.input:
        if parquet.lies_in(output, path):
            raise DataError(f"{output} is, or lies in, {path}: it would be written over")
    if output.exists() and not args.overwrite:
        raise DataError(f"{output} is there already; --overwrite replaces it")
    return _convert(args.input, output)


def _convert(given: list[str], output: Path) -> int:
    if output.suffix == ".gz":
        raise DataError(f"{output}: nothing is packed here; give a name without .gz")
    for path in given:
        if not remote.is_remote(path) and Path(path).is_fifo():
            raise DataError(f"{path} is a pipe, and is read twice here: write it to a file first")
    with ExitStack() as stack:
        return _convert_local([stack.enter_context(remote.fetched(path)) for path in given], output)


def _convert_local(inputs: list[str], output: Path) -> int:
    kinds = {_has_answers(path) for path in inputs} - {None}
    if len(kinds) > 1:
        raise DataError("some inputs hold requests and some answers: convert them one by one")
    answers = bool(kinds and kinds.pop())
    if parquet.is_table(output):
        rows = answer_rows.rows_of if answers else request_rows.rows_of
        columns = answer_rows.ANSWER_COLUMNS if answers else request_rows.REQUEST_COLUMNS
        made = (_rows(path, rows, answers) for path in inputs)
        return parquet.write(output, columns, chain.from_iterable(made))
    return _write_lines(output, chain.from_iterable(_lines(path, answers) for path in inputs))


def _has_answers(path: str) -> bool | None:
    """Whether an input holds answers, by its columns or its first line; None if it is empty."""
    if parquet.is_table(path):
        return {"response", "status_code"} <= {*parquet.columns_of(path)}
    with request_file.opened(path) as file:
        for line in file:
            if line.strip():
                try:
                    return {"response", "error"} <= orjson.loads(line).keys()
                except (ValueError, AttributeError) as error:
                    raise DataError(f"{path}: the first line is no JSON object") from error
    return None


def _lines(path: str, answers: bool) -> Iterator[bytes]:
    if not parquet.is_table(path):
        with request_file.opened(path) as file:
            yield from file
    elif answers:
        yield from answer_rows.lines_of(parquet.rows_of(path))
    else:
        if names := request_rows.unused(parquet.columns_of(path)):
            print(request_rows.left_out(path, names), file=sys.stderr)
        yield from request_rows.lines_of(parquet.rows_of(path))


def _rows(
    path: str, rows: Callable[[Iterator[bytes]], Iterator[dict[str, Any]]], answers: bool
) -> Iterator[dict[str, Any]]:
    try:
        yield from rows(_lines(path, answers))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _write_lines(output: Path, lines: Iterator[bytes]) -> int:
    temporary = beside(output)
    count = 0
    try:
        with temporary.open("wb") as file:
            for line in lines:
                if line.strip():
                    file.write(line if line.endswith(b"\n") else line + b"\n")
                    count += 1
        put_in_place(temporary, output)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count
