"""``run -o FOLDER/``: the answers as parts of a table, written as they come.

    FOLDER/part-00000.parquet ...   a part each, whole or not there
    FOLDER/_SUCCESS                 empty; there when the run has ended
    FOLDER/_run.json                which input it is for
    FOLDER/_results*                the result files of a run that has not ended or has failed lines

Names that begin with an underscore are passed over by whatever reads a folder of Parquet. The
folder may be in an object store; the result files are in a working folder then, and should that be
lost with its machine, ``--resume`` makes them again of the parts.

A part is made of the next lines of the result files. The journal beside them (``*.parts``) says up
to where, a line a part, written when the part is in its place: a run that was killed in between
makes the same part again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.batch_file.same_file import sidecar_of
from sglang.srt.blendserve.batch_file.whole_file import write_whole
from sglang.srt.blendserve.run.delivery import Delivery
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.place import Folder, part_name, part_number
from sglang.srt.blendserve.tables import answer_rows, parquet
from sglang.srt.blendserve.tables.data_error import DataError

if TYPE_CHECKING:
    from sglang.srt.blendserve.run.run_log import RunLog

PART_ROWS = 10_000
"""Rows of a part, unless told."""

_LOOK_SECONDS, _RETRY_SECONDS = 1.0, 30.0
"""Between two looks at how many results there are; after a part that could not be written."""

_RUN, _SUCCESS = "_run.json", "_SUCCESS"


@dataclass(frozen=True)
class PartsDelivery(Delivery):
    """Parts of a table, in a folder.

    Attributes:
        place: the folder.
        part_rows: rows of a part; the last one has fewer, and so has one of a run that was stopped.
        retry: failed lines are answered again, so parts that hold them are written anew at the end.
    """

    place: Folder = field(default_factory=lambda: Folder(""))
    part_rows: int = PART_ROWS
    retry: bool = False

    @property
    def name(self) -> str:
        """What messages call the output."""
        return self.place.name

    def prepare(self, *, again: bool, overwrite: bool) -> None:
        """Check that no parts of a finished run are lost, and make both folders. With ``again`` and
        without result files here, these are made of the parts that are there.

        Raises:
            RunFailure: there are parts already, the folder holds something else, or it cannot be
                read or written.
        """
        try:
            parquet.require()
            self.place.make()
            names = self.place.names()
            strange = [n for n in names if n.endswith(".parquet") and part_number(n) is None]
            if strange:
                raise RunFailure(
                    f"{self.name} holds {strange[0]}, which is no part of a run: give a folder of "
                    "its own."
                )
            parts = [name for name in names if part_number(name) is not None]
            if parts and not (again or overwrite):
                raise RunFailure(
                    f"{self.name} has results already. --resume goes on with that run, "
                    "--retry-errors answers its failed lines again as well, --overwrite starts "
                    "again."
                )
            if self.url is not None:
                self._make_work(self.url)
            if again and parts and not sidecar_of(self.output).exists():
                self._restore(sorted(parts, key=_number_of))
        except (DataError, OSError) as error:
            raise RunFailure(str(error)) from error

    @contextmanager
    def running(self, log: RunLog, *, overwrite: bool = False) -> Iterator[None]:
        """Write parts in a thread while lines are answered, as `Delivery.running` has it."""
        try:
            names = self.place.names()
            if overwrite:
                _Journal(self.output).forget()
                self.place.remove([name for name in names if part_number(name) is not None])
            self.place.remove([name for name in (_SUCCESS,) if name in names])
            self.place.put_bytes(sidecar_of(self.output).read_bytes(), _RUN)
        except (DataError, OSError) as error:
            raise RunFailure(str(error)) from error
        if self.retry:  # parts may hold lines that are answered again: all are made at the end
            _Journal(self.output).forget()
            yield
            return
        writer = _Writer(self, log)
        thread = threading.Thread(target=writer.run, name="parts", daemon=True)
        thread.start()
        try:
            yield
        finally:
            writer.stopped.set()
            thread.join()
            if self.url is not None and log.done:  # this machine may be gone when it goes on
                writer.write_rest()

    def finish(self, *, failed: int) -> None:
        """Write the last part, and mark the folder as whole.

        Raises:
            RunFailure: it cannot be written; the result files are there.
        """
        with self._or_say_what_is_kept():
            writer = _Writer(self, None)
            while writer.write_part():
                pass
            count = len(writer.journal.parts)
            names = self.place.names()
            self.place.remove([name for name in names if (part_number(name) or 0) >= count > 0])
            self.place.put_bytes(b"", _SUCCESS)
        if failed:
            if self.url is not None:
                self._end(failed)
            return
        # The sidecar first: without it, what is here is made again of the parts.
        for path in (sidecar_of(self.output), self.output, self.errors, writer.journal.path):
            path.unlink(missing_ok=True)
        if self.url is not None:
            self._end(failed)

    def _restore(self, parts: list[str]) -> None:
        """Make the result files, and the journal, of the parts."""
        run = self.place.get_bytes(_RUN)
        if run is None:
            raise RunFailure(
                f"{self.name} has no {_RUN}, so nobody knows which input its parts are for. "
                "--overwrite starts again."
            )
        journal = _Journal(self.output)
        journal.forget()
        answered: set[str] = set()
        failed: dict[str, bytes] = {}
        made: list[_Part] = []
        rows = 0
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            for name in parts:
                with self.place.part(name) as path:
                    for line in answer_rows.lines_of(parquet.rows_of(path)):
                        rows += 1
                        found = json.loads(line)
                        response = found["response"]
                        if response is None or response["status_code"] >= 400:
                            failed[found["id"]] = line
                        elif found["id"] not in answered:
                            answered.add(found["id"])
                            output.write(line)
                made.append(_Part(rows, output.tell(), 0))
            errors.writelines(line for id_, line in failed.items() if id_ not in answered)
            for file in (output, errors):
                file.flush()
                os.fsync(file.fileno())
        whole = [part_number(name) for name in parts] == [*range(len(parts))]
        if whole and not failed and rows == len(answered):
            for before, part in zip([_Part(0, 0, 0), *made], made, strict=False):
                journal.note(_Part(part.rows - before.rows, part.output, part.errors))
        # Else all parts are made anew: a retry of failed lines had come to a part of them only.
        write_whole(sidecar_of(self.output), run)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a part, and where in the result files it ends, bytes."""

    rows: int
    output: int
    errors: int


class _Journal:
    """The parts that are in their place."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(output.name + ".parts")
        self.parts: list[_Part] = []

    def read(self, sizes: tuple[int, int]) -> None:
        """Read it; parts of more than ``sizes`` bytes of the result files count no more."""
        self.parts = []
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                part = _Part(**json.loads(line))
            except (ValueError, TypeError):
                break  # torn: the machine went down
            if part.output > sizes[0] or part.errors > sizes[1]:
                break
            self.parts.append(part)

    def note(self, part: _Part) -> None:
        """Write down that a part is in its place."""
        line = {"rows": part.rows, "output": part.output, "errors": part.errors}
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def forget(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)


class _Writer:
    """Makes parts of the lines that the result files have more than the journal."""

    def __init__(self, delivery: PartsDelivery, log: RunLog | None) -> None:
        self._delivery, self._log = delivery, log
        self._files = (delivery.output, delivery.errors)
        self.stopped = threading.Event()
        self.journal = _Journal(delivery.output)
        sizes = [path.stat().st_size if path.exists() else 0 for path in self._files]
        self.journal.read((sizes[0], sizes[1]))
        self._rewrite_journal()
        self._rows = sum(part.rows for part in self.journal.parts)

    def run(self) -> None:
        """Write parts as there are rows for them, until `stopped`."""
        assert self._log is not None
        pause = _LOOK_SECONDS
        while not self.stopped.wait(pause):
            pause = _LOOK_SECONDS
            if self._log.done - self._rows < self._delivery.part_rows:
                continue
            try:
                self.write_part()
            except (DataError, RunFailure, OSError) as error:  # the results are here; try again
                print(f"\n{error}; trying again", file=sys.stderr)
                pause = _RETRY_SECONDS

    def write_rest(self) -> None:
        """Write all there is, of a run that ends early; what cannot be written is said."""
        try:
            while self.write_part():
                pass
        except (DataError, RunFailure, OSError) as error:
            print(f"\n{error}\nThe answers are in {self._delivery.output}.", file=sys.stderr)

    def write_part(self) -> bool:
        """Write the next part; return whether there was one."""
        if self._log is not None:
            self._log.sync()  # a part must not outlive the lines that it is made of
        last = self.journal.parts[-1] if self.journal.parts else _Part(0, 0, 0)
        ends = [last.output, last.errors]
        rows = self._next_rows(ends)
        first = next(rows, None)
        if first is None and self.journal.parts:
            return False
        name = part_name(len(self.journal.parts))
        with self._delivery.place.new_part(name, self._delivery.output.parent) as path:
            written = parquet.write(path, answer_rows.ANSWER_COLUMNS, _with(first, rows))
        part = _Part(written, ends[0], ends[1])
        self.journal.note(part)
        self.journal.parts.append(part)
        self._rows += written
        return written > 0

    def _next_rows(self, ends: list[int]) -> Iterator[dict[str, Any]]:
        """Yield the rows of the next part; ``ends`` moves on to where it ends in each file."""
        left = self._delivery.part_rows
        for index, path in enumerate(self._files):
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(ends[index])
                while left and (line := file.readline()).endswith(b"\n"):
                    left -= 1
                    ends[index] += len(line)
                    yield from answer_rows.rows_of([line])

    def _rewrite_journal(self) -> None:
        """Leave the parts that count."""
        parts = self.journal.parts
        if self.journal.path.exists():
            self.journal.forget()
            for part in parts:
                self.journal.note(part)


def _number_of(name: str) -> int:
    number = part_number(name)
    assert number is not None
    return number


def _with(first: dict[str, Any] | None, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if first is not None:
        yield first
    yield from rows
