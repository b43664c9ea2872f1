"""A CSV file of records, written while an engine runs."""

from __future__ import annotations

import csv
import time
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

_FLUSH_SECONDS = 1.0
_BUFFER_BYTES = 1 << 18


class RowFile:
    """One row per record of a dataclass; a new file each time the engine starts.

    Rows are buffered and written about once a second and when the engine is idle, so a killed
    process loses a second of rows at most.
    """

    def __init__(self, path: Path, record: type[Any]) -> None:
        """``record``: the dataclass, of at least two fields, which are the columns.

        Raises OSError naming ``path`` if it cannot be written.
        """
        columns = [field.name for field in fields(record)]
        self._values = attrgetter(*columns)
        self._file = path.open("w", newline="", encoding="utf-8", buffering=_BUFFER_BYTES)
        self._writer = csv.writer(self._file)
        self._writer.writerow(columns)
        self._file.flush()
        self._flushed = time.monotonic()

    def add(self, record: Any) -> None:
        """Append one row."""
        self._writer.writerow(
            [f"{v:.7g}" if isinstance(v, float) else v for v in self._values(record)]
        )
        now = time.monotonic()
        if now - self._flushed > _FLUSH_SECONDS:
            self._flushed = now
            self._file.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()


class RankLayout(Protocol):
    """One of a server's ranks, as SGLang numbers them in ``Scheduler.ps``."""

    tp_rank: int
    tp_size: int
    dp_rank: int | None
    dp_size: int


def trace_file(trace: str, ranks: RankLayout) -> Path | None:
    """Return the file in which one rank writes the trace named ``trace``; None if that is empty.

    Where there are several ranks, ``steps.csv`` is ``steps.dp0.tp1.csv``.
    """
    if not trace:
        return None
    file = Path(trace)
    part = f".dp{ranks.dp_rank}" if ranks.dp_size > 1 else ""
    part += f".tp{ranks.tp_rank}" if ranks.tp_size > 1 else ""
    return file.with_name(f"{file.stem}{part}{file.suffix}")
