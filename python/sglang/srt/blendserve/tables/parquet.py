"""Parquet files, by pyarrow, which is needed for these alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.batch_file.same_file import same_file
from sglang.srt.blendserve.batch_file.whole_file import beside, put_in_place
from sglang.srt.blendserve.tables.data_error import DataError

ROWS = 1000
"""Rows in memory at once when a file is read."""

GROUP_ROWS = 10_000
"""Rows of a row group that is written, which are in memory at once."""


UNREADABLE = object()
"""Stands for a value that cannot be read; no JSON can be made of it."""


def require() -> None:
    """Check that Parquet files can be read and written.

    Raises:
        DataError: pyarrow is not installed.
    """
    _pyarrow()


def is_table(path: str | Path) -> bool:
    """Whether ``path`` is named as a Parquet file, or is a folder with some."""
    return Path(path).suffix == ".parquet" or bool(Path(path).is_dir() and parts_of(path))


def parts_of(path: str | Path) -> list[Path]:
    """Return the Parquet files of a folder, by name, or the file itself. Names that begin with a
    dot or an underscore are those of files that other tools are writing."""
    if Path(path).is_dir():
        found = sorted(Path(path).glob("*.parquet"))
        return [part for part in found if not part.name.startswith((".", "_"))]
    return [Path(path)]


def lies_in(path: str | Path, table: str | Path) -> bool:
    """Whether ``path`` is the file ``table``, or would be read as a part of that folder."""
    if Path(table).is_dir():
        return (
            Path(path).suffix == ".parquet"
            and Path(path).absolute().parent.resolve() == Path(table).resolve()
        )
    return same_file(path, table)


def columns_of(path: str | Path) -> list[str]:
    """Return the names of the columns, of all parts.

    Raises:
        DataError: it cannot be read.
    """
    parquet = _pyarrow_parquet()
    _refuse_subfolders(path)
    names: dict[str, None] = {}
    for part in parts_of(path):
        try:
            names.update(dict.fromkeys(parquet.read_schema(part).names))
        except (OSError, _arrow_error()) as error:
            raise DataError(f"{part} cannot be read as Parquet: {error}") from error
    return [*names]


def rows_of(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, or of all the files of a folder by name. A value that cannot be
    read, a text that is no UTF-8, is `UNREADABLE`.

    Raises:
        DataError: it cannot be read.
    """
    parquet = _pyarrow_parquet()
    _refuse_subfolders(path)
    for part in parts_of(path):
        try:
            # With pre_buffer, the default, all that was read stays in memory until it is closed.
            with parquet.ParquetFile(part, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=ROWS):
                    yield from _values(batch)
        except (OSError, _arrow_error()) as error:
            raise DataError(f"{part} cannot be read as Parquet: {error}") from error


def write(path: Path, columns: Sequence[tuple[str, str]], rows: Iterable[dict[str, Any]]) -> int:
    """Write a file, whole or not at all; return its rows.

    Args:
        columns: name and type of each, a type as `TYPES` names it; every value may be missing.
        rows: a value by name of column each.

    Raises:
        DataError: it cannot be written.
    """
    arrow, parquet = _pyarrow(), _pyarrow_parquet()
    schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in columns])
    temporary = beside(path)
    count = 0
    try:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            group: list[dict[str, Any]] = []
            for row in rows:
                group.append(row)
                if len(group) == GROUP_ROWS:
                    writer.write_table(arrow.Table.from_pylist(group, schema=schema))
                    count, group = count + len(group), []
            if group or not count:
                writer.write_table(arrow.Table.from_pylist(group, schema=schema))
        put_in_place(temporary, path)
    except (OSError, OverflowError, _arrow_error()) as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count + len(group)


def _values(batch: Any) -> Iterator[dict[str, Any]]:
    try:
        # Maps are looked for in every value then, which takes most of the time.
        has_maps = "map<" in str(batch.schema)
        yield from batch.to_pylist(maps_as_pydicts="lossy" if has_maps else None)
    except UnicodeDecodeError:  # none of them was yielded
        for row in range(batch.num_rows):
            yield {name: _value(batch.column(name)[row]) for name in batch.schema.names}


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="lossy")
    except UnicodeDecodeError:
        return UNREADABLE


def _refuse_subfolders(path: str | Path) -> None:
    if Path(path).is_dir() and any(one.is_dir() for one in Path(path).iterdir()):
        inside = next((one for one in Path(path).rglob("*/*.parquet")), None)
        if inside is not None:
            raise DataError(f"{path} has tables in folders of its own, {inside} say; give one")


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        message = "Parquet files need pyarrow: pip install 'sglang-blendserve[tables]'"
        raise DataError(message) from error
    return pyarrow


def _pyarrow_parquet() -> Any:
    _pyarrow()
    import pyarrow.parquet

    return pyarrow.parquet


def _arrow_error() -> Any:
    return _pyarrow().ArrowException
