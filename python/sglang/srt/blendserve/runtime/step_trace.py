"""The step trace (``--blendserve-trace``): one CSV row per scheduling step."""

from __future__ import annotations

import csv
import time
from operator import attrgetter
from pathlib import Path

from sglang.srt.blendserve.runtime.step_record import COLUMNS, StepRecord

_FLUSH_SECONDS = 1.0
_BUFFER_BYTES = 1 << 18

_row = attrgetter(*COLUMNS)


def rank_path(path: str, *, tp_rank: int, tp_size: int, dp_rank: int | None) -> Path:
    """The file of one rank: ``steps.csv`` is ``steps.dp0.tp1.csv`` where there are several."""
    file = Path(path)
    part = "" if dp_rank is None else f".dp{dp_rank}"
    part += f".tp{tp_rank}" if tp_size > 1 else ""
    return file.with_name(f"{file.stem}{part}{file.suffix}")


class StepTrace:
    """Writes records to a CSV file; a new file each time the engine starts.

    Rows are buffered and written about once a second and when the engine is idle, so a killed
    process loses a second of rows at most.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError naming ``path`` if it cannot be written."""
        self._file = path.open("w", newline="", buffering=_BUFFER_BYTES)
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)
        self._file.flush()
        self._flushed = time.monotonic()

    def add(self, record: StepRecord) -> None:
        """Append one row."""
        self._writer.writerow(
            [f"{value:.6g}" if isinstance(value, float) else value for value in _row(record)]
        )
        now = time.monotonic()
        if now - self._flushed > _FLUSH_SECONDS:
            self._flushed = now
            self._file.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()
