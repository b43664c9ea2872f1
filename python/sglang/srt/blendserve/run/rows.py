"""Rows in, rows out: a batch as a Python iterator, or as a stage of Ray Data.

`batch` is what ``sglang_blendserve.batch`` is. The rows are answered by the command ``run`` in a
process of its own, so what holds for files holds here: one plan over all rows, engines that may
die, a bad row that is its own error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.tables import answer_rows, request_rows

Row = dict[str, Any]

_LOOK_SECONDS = 0.2
_END_SECONDS = 30.0
_CUSTOM_ID = "custom_id"
_NEW = frozenset(name for name, _ in answer_rows.ANSWER_COLUMNS) - {"id", "line", _CUSTOM_ID}
"""Columns that a row has when it has been answered, besides its own."""


class BatchFailed(RuntimeError):
    """The batch did not come to its end; the message says why. Rows so far were given out."""


def batch(
    rows: Any,
    model_path: str,
    *,
    engines: int = 1,
    ray_address: str | None = None,
    flags: Sequence[str] = (),
) -> Any:
    """Answer rows with a model, in whatever order is fastest.

    Each row is a request: with ``messages``, ``prompt`` or ``input`` and parameters as in OpenAI's
    API (``max_tokens``, ``temperature``, ...), or with a whole ``body``. It comes back with all
    that was in it, and with these columns: ``text``, ``finish_reason``, ``prompt_tokens``,
    ``completion_tokens``, ``cached_tokens``, ``status_code``, ``response`` (the whole answer, JSON)
    and, where there is no answer, ``error_code``, ``error_message`` and ``error_param``.

    Args:
        rows: an iterable of dicts, read to its end before the first request is sent; or a Ray
            Dataset.
        model_path: folder or name of the model.
        engines: how many engines answer.
        ray_address: of a cluster that the engines are started on; None: on this machine. For a Ray
            Dataset its own cluster.
        flags: more flags of ``sglang-blendserve run`` and of SGLang's server.

    Returns:
        An iterator of rows, as they are answered; rows that wait are kept in memory. Closed early,
        it ends the engines. Of a Ray Dataset another Dataset, which does all that when it is
        executed.

    Raises:
        BatchFailed: no engine has started, say; raised by the iterator.
        ValueError: a row has a column of an answer; raised by the iterator.
    """
    if hasattr(rows, "map_batches"):
        return _stage(rows, model_path, engines, flags)
    more = [f"--engines={engines}", *flags]
    if ray_address is not None:
        more.append(f"--ray-address={ray_address}")
    return _answered(rows, model_path, more)


def _answered(
    rows: Iterable[Mapping[str, Any]], model_path: str, flags: list[str]
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="blendserve-") as place:
        folder = Path(place)
        waiting = _write(rows, folder / "in.jsonl")
        if not waiting:
            return
        # In full, for the command runs here: other flags may name files as well.
        names = {"-i": "in.jsonl", "-o": "out.jsonl", "--errors": "errors.jsonl"}
        files = [part for flag, name in names.items() for part in (flag, str(folder / name))]
        model = ["--model-path", _absolute(model_path), "--stop-with-stdin"]
        process = subprocess.Popen(
            [sys.executable, "-m", "sglang.srt.blendserve.cli", "run", *files, *model, *flags],
            stdin=subprocess.PIPE,  # whose end it sees, however this process ends
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            results = [_Growing(folder / "out.jsonl"), _Growing(folder / "errors.jsonl")]
            ended = False
            while not ended:
                ended = process.poll() is not None
                for answer in (row for file in results for row in file.more()):
                    yield _joined(waiting, answer)
                if not ended:
                    time.sleep(_LOOK_SECONDS)
            if waiting:
                raise BatchFailed(
                    f"{len(waiting)} rows were not answered: sglang-blendserve run ended with "
                    f"status {process.returncode}; what it said stands on standard error."
                )
        finally:
            _end(process)


def _write(rows: Iterable[Mapping[str, Any]], path: Path) -> dict[str, Row]:
    """Write the batch file; return the rows by the name that each has there."""
    waiting: dict[str, Row] = {}

    def named() -> Iterator[Row]:
        for number, row in enumerate(rows):
            kept = waiting[str(number)] = dict(row)
            if clash := _NEW.intersection(kept):
                raise ValueError(
                    f"row {number} has a column {min(clash)}, as its answer will have: rename it"
                )
            yield kept | {_CUSTOM_ID: str(number)}

    with path.open("wb") as file:
        file.writelines(request_rows.lines_of(named()))
    return waiting


def _joined(waiting: dict[str, Row], answer: Row) -> Row:
    """Return a row with what was answered; its own columns stay as they are."""
    # A line that was too long to be read has no name, but its number.
    row = waiting.pop(answer[_CUSTOM_ID] or str(answer["line"] - 1))
    return {name: answer.get(name) for name in _NEW} | row


class _Growing:
    """The results of a file that is being written."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def more(self) -> Iterator[Row]:
        """Yield what has come since, whole lines only."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                yield from answer_rows.rows_of([line])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the run, in order if that is a matter of seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _absolute(model_path: str) -> str:
    """Return a model's name, or its folder from wherever the run is."""
    return str(Path(model_path).resolve()) if Path(model_path).is_dir() else model_path


def _stage(dataset: Any, model_path: str, engines: int, flags: Sequence[str]) -> Any:
    """Return the Dataset of the answers: one task that has all rows, because the plan is over all,
    and that feeds engines all over the cluster."""

    def answer(table: Any) -> Iterator[Any]:
        import pyarrow
        import ray

        rows = table.to_pylist()
        schema = _schema(table.schema)
        address = ray.get_runtime_context().gcs_address
        answers = batch(rows, model_path, engines=engines, ray_address=address, flags=flags)
        for row in answers:
            full = {name: row.get(name) for name in schema.names}
            yield pyarrow.Table.from_pylist([full], schema=schema)

    return dataset.repartition(1).map_batches(
        answer, batch_size=None, batch_format="pyarrow", num_cpus=0
    )


def _schema(given: Any) -> Any:
    """Return the columns of rows that have been answered: the given ones, and those of answers."""
    import pyarrow

    types = {"string": pyarrow.string(), "int64": pyarrow.int64(), "int32": pyarrow.int32()}
    new = [
        pyarrow.field(name, types[kind])
        for name, kind in answer_rows.ANSWER_COLUMNS
        if name in _NEW
    ]
    return pyarrow.schema([*given, *new])
