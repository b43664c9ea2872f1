"""``run -o FILE.parquet``: the answers as a table, made of the result files when all are there.

A Parquet file can be read once its end is written, and not before. So a run writes JSON lines as
ever, beside the table, which outlive any crash and which ``--resume`` goes on with; the last step
makes the table of both files, refused lines and all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.batch_file.same_file import sidecar_of
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.tables import answer_rows, parquet
from sglang.srt.blendserve.tables.data_error import DataError


def log_files(table: Path) -> tuple[Path, Path]:
    """Return the names of the output file and the error file beside a table."""
    return table.with_name(table.name + ".jsonl"), table.with_name(table.name + ".errors.jsonl")


def check(table: Path, *, overwrite: bool) -> None:
    """Check that no table of a finished run is lost, and that one can be written.

    Raises:
        RunFailure: there is one and nothing beside it to go on with, it is a folder, or pyarrow is
            not there.
    """
    if table.is_dir():
        raise RunFailure(f"{table} is a folder. Give the table a name of its own.")
    if table.exists() and not overwrite and not log_files(table)[0].exists():
        raise RunFailure(f"{table} has results already. --overwrite starts again.")
    try:
        parquet.require()
    except DataError as error:
        raise RunFailure(str(error)) from error


def write(table: Path, *, failed: int) -> None:
    """Write the table of a run that has ended, and remove what it is made of.

    Args:
        failed: lines without an answer. With some the result files stay, for ``--retry-errors``.

    Raises:
        RunFailure: it cannot be written; the result files are there.
    """
    output, errors = log_files(table)
    rows = chain.from_iterable(_rows(path) for path in (output, errors) if path.exists())
    try:
        parquet.write(table, answer_rows.ANSWER_COLUMNS, rows)
    except ValueError as error:
        raise RunFailure(f"{error}\nThe answers are in {output}.") from error
    if not failed:
        for path in (output, errors, sidecar_of(output)):
            path.unlink(missing_ok=True)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        try:
            yield from answer_rows.rows_of(lines)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
