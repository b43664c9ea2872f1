"""Makes a request store out of an input: worker processes tokenize, one thread writes.

A store that is whole, of the same input and the same model, is taken as it is. Any other is made
anew. Rows can be read as soon as they are written, so planning may begin before the end.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from sglang.srt.blendserve.answering.disk_retry import (
    RETRY_SECONDS,
    is_storage_failure,
    reason_of,
)
from sglang.srt.blendserve.batch_file.lines import RawLine
from sglang.srt.blendserve.batch_file.types import BatchFileError, ErrorCode, LineError
from sglang.srt.blendserve.batch_file.validation import CheckedLine, Rules, check_line
from sglang.srt.blendserve.requests.across_lines import AcrossLines, Verdict
from sglang.srt.blendserve.requests.columns import ERRORS_FILE, NAMES_FILE, ColumnWriter
from sglang.srt.blendserve.requests.disk_budget import check_room
from sglang.srt.blendserve.requests.fingerprint import model_fingerprint
from sglang.srt.blendserve.requests.inputs import Input
from sglang.srt.blendserve.requests.line_blocks import Block, FileScan, lines_of
from sglang.srt.blendserve.requests.messages import Prepared, Work
from sglang.srt.blendserve.requests.prepare_worker import prepare
from sglang.srt.blendserve.requests.request_store import (
    SEAL_FILE,
    RequestStore,
    delete_store,
    open_whole,
    seal,
)
from sglang.srt.blendserve.requests.workers import Workers
from sglang.srt.blendserve.store.disk import private_folder

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0
_AHEAD = 4
"""Blocks of a stream for each worker that may wait for one before them."""


class PreparationStopped(RuntimeError):
    """`Preparation.close` was called before the end."""


class Preparation:
    """The making of one store. Use as a context manager, which ends it.

    Attributes:
        store: what is there of it, from `begin` on.
        found: what the input holds, from `begin` on.
        lines: lines that have been prepared.
        problem: why writing waits, None when it does not.
        made: whether the store had to be made; False: it was there and whole.
    """

    store: RequestStore
    found: FileScan

    def __init__(
        self,
        folder: Path,
        source: Input,
        server_args: ServerArgs,
        rules: Rules,
        *,
        workers: int | None = None,
        mend: str = "Free some, or give another folder.",
    ) -> None:
        """Do nothing yet.

        Args:
            folder: the store's own.
            source: the input.
            server_args: the engine's, resolved.
            rules: what the input must keep to.
            workers: processes, None: one for each core that this process may use.
            mend: what to do if the disk has too little room, as a sentence.
        """
        self.lines = 0
        self.problem: str | None = None
        self.made = True
        self._folder, self._source, self._rules = folder, source, rules
        self._server_args, self._mend = server_args, mend
        self._count = workers or len(os.sched_getaffinity(0))
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._workers: Workers | None = None
        self._writer: ColumnWriter | None = None
        self._fingerprint: dict[str, str] = {}
        self._again: deque[Work] = deque()
        self._died: set[tuple[int, int]] = set()
        self._waiting: dict[int, tuple[Block, Prepared]] = {}
        self._next_byte = 0
        self._named = {"namespace": {"": 0}, "model": {"": 0}}

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Read the input through, and begin to make the store unless a whole one is there.

        Raises:
            BatchFileError: the input is empty or too large.
            NoRoom: the store does not fit on the disk.
            OSError: the input cannot be read, or the store not begun.
        """
        if not (self._folder / SEAL_FILE).exists():
            self._start_workers()  # they load for seconds, meanwhile the input is read
        try:
            self.found = self._source.scan()
            self._check_size()
            self._fingerprint = self._make_fingerprint()
            there = open_whole(self._folder, self._fingerprint)
            if there is not None:
                self.store, self.made, self.lines = there, False, self.found.lines
                self._end_workers()
                return
            check_room(self._folder, self.found.size, self.found.lines, self._mend)
            delete_store(self._folder)
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            private_folder(self._folder)
            self._writer = ColumnWriter(self._folder)
            self.store = RequestStore(self._folder)
            self._start_workers()
        except BaseException:
            self.close()
            raise
        self._thread = threading.Thread(target=self._run, name="blendserve-prepare", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Return whether the store is whole, at the latest after a time; None: when it is.

        Raises:
            BatchFileError: the input has changed while it was read.
            WorkerFailed, OSError: the store cannot be made.
            PreparationStopped: `close` was called.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        if self._failure is not None:
            raise self._failure
        return True

    def close(self) -> None:
        """End it, wherever it is; a store that is not whole stays and is never taken for one."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._end_workers()
        if self._writer is not None:
            self._writer.close()

    @property
    def process_ids(self) -> list[int]:
        """The worker processes."""
        return [] if self._workers is None else self._workers.process_ids

    @property
    def workers_ready(self) -> int:
        """How many of these have loaded SGLang and the tokenizer, which takes seconds."""
        return 0 if self._workers is None else self._workers.ready

    def _start_workers(self) -> None:
        if self._workers is None:
            given = (self._server_args, self._source.path, self._rules)
            self._workers = Workers(self._count, *given)

    def _end_workers(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _check_size(self) -> None:
        found, rules = self.found, self._rules
        problem = None
        if not found.lines:
            problem = ErrorCode.EMPTY_FILE, "The file has no request: every line is blank."
        elif rules.max_lines is not None and found.lines > rules.max_lines:
            message = f"The file has more than {rules.max_lines} requests. Split it."
            problem = ErrorCode.TOO_MANY_TASKS, message
        elif rules.max_bytes is not None and found.size > rules.max_bytes:
            message = f"The file is larger than {rules.max_bytes} bytes. Split it."
            problem = ErrorCode.FILE_TOO_LARGE, message
        if problem is not None:
            raise BatchFileError(LineError(code=problem[0], message=problem[1]))

    def _make_fingerprint(self) -> dict[str, str]:
        rules = self._rules
        models = None if rules.models is None else sorted(rules.models)
        return {
            **model_fingerprint(self._server_args),
            "input": self.found.digest,
            "rules": str((rules.endpoint, models, rules.max_line_bytes)),
        }

    def _run(self) -> None:
        try:
            self._prepare_all()
        except BaseException as failure:
            self._failure = failure
        finally:
            self._end_workers()
            if self._writer is not None:
                self._writer.close()

    def _prepare_all(self) -> None:
        assert self._workers is not None and self._writer is not None
        workers, in_order = self._workers, self._source.in_order_because is not None
        across = AcrossLines(self._rules, in_order=in_order)
        todo = self._source.work(self.found)
        more = True
        while more or self._again or workers.busy:
            while workers.free and len(self._waiting) < _AHEAD * self._count:
                work = self._again.popleft() if self._again else next(todo, None)
                if work is None:
                    more = False
                    break
                workers.give(work)
            outcomes = workers.wait(_WAIT_SECONDS)
            if self._stopped.is_set():
                raise PreparationStopped("The requests are not all prepared.")
            for work, rows in outcomes:
                found = self._died_over(work) if rows is None else rows
                if found is not None:
                    self._take(work.block, found, across, in_order=in_order)
        self._finish(across)

    def _died_over(self, work: Work) -> Prepared | None:
        """Have work whose worker has died done again; what always ends one is left to the engine.

        Returns its rows if it is one line that has ended a worker twice, else None.
        """
        block, where = work.block, (work.block.start, work.block.end)
        if where not in self._died:  # it may have been ended from outside
            self._died.add(where)
            self._again.appendleft(work)
            return None
        data = work.data if work.data is not None else self._read(block.start, block.end)
        parts = list(_single_lines(block, data))
        if len(parts) == 1:
            logger.warning("line %d ends the process that tokenizes it", block.first_line)
            return prepare(block, data, self._rules, None)
        keeps = work.data is not None
        self._again.extendleft(
            Work(part, data[part.start - block.start : part.end - block.start] if keeps else None)
            for part in reversed(parts)
        )
        return None

    def _take(
        self, block: Block, rows: Prepared, across: AcrossLines, *, in_order: bool
    ) -> None:
        """Write the rows of a block; of a stream only after those before it."""
        if not in_order:
            self._write(rows, across)
            return
        self._waiting[block.start] = (block, rows)
        while self._next_byte in self._waiting:
            block, rows = self._waiting.pop(self._next_byte)
            self._next_byte = block.end
            self._write(rows, across)

    def _write(self, rows: Prepared, across: AcrossLines) -> None:
        writer = self._writer
        assert writer is not None
        verdict = across.take(rows, writer.read)
        names = [("namespace", name) for name in rows.namespaces]
        numbers = np.array(self._number(names), dtype=np.int32)
        rows.columns["namespace"][:] = numbers[rows.columns["namespace"]]
        self._number([("model", name) for name in across.models])
        self._note(verdict, [LineError.model_validate(error) for error in rows.errors])
        self._persist(lambda: writer.append(rows.columns, rows.tokens))
        self.lines += len(rows.lines)

    def _number(self, names: list[tuple[str, str]]) -> list[int]:
        """Return the numbers of names, of which new ones are written."""
        new = b""
        found = []
        for kind, name in names:
            known = self._named[kind]
            if name not in known:
                known[name] = len(known)
                new += orjson.dumps([kind, name]) + b"\n"
            found.append(known[name])
        self._append_text(NAMES_FILE, new)
        return found

    def _note(self, verdict: Verdict, errors: list[LineError]) -> None:
        """Write errors, the last of a line counting, and flags that have changed."""
        lines = [error.model_dump_json().encode() + b"\n" for error in (*errors, *verdict.errors)]
        self._append_text(ERRORS_FILE, b"".join(lines))
        writer = self._writer
        assert writer is not None
        if verdict.rows.size:
            self._persist(lambda: writer.set_flags(verdict.rows, verdict.flags))

    def _append_text(self, name: str, lines: bytes) -> None:
        writer = self._writer
        assert writer is not None
        if lines:
            self._persist(lambda: writer.append_text(name, lines))

    def _finish(self, across: AcrossLines) -> None:
        writer = self._writer
        assert writer is not None
        if not self._source.unchanged() or self.lines != self.found.lines:
            message = "The file has changed while it was read. Start again."
            raise BatchFileError(LineError(code=ErrorCode.INPUT_CHANGED, message=message))
        self._note(across.settle(writer.read, self._reread), [])
        self._persist(lambda: seal(self._folder, self._fingerprint, writer.sync()))

    def _reread(self, line: int, place: int, size: int) -> CheckedLine:
        data = self._read(place, place + size)
        [(raw, _)] = lines_of(data, line, self._rules.max_line_bytes)
        return check_line(RawLine(line, raw.data), self._rules)

    def _read(self, start: int, end: int) -> bytes:
        assert self._source.path is not None
        with open(self._source.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _persist(self, write: Callable[[], object]) -> None:
        """Write; while the disk takes nothing, try every few seconds.

        Raises:
            PreparationStopped: `close` was called meanwhile.
        """
        while True:
            try:
                write()
            except OSError as error:
                if not is_storage_failure(error):
                    raise
                if self.problem is None:
                    logger.error("%s takes no data, waiting: %s", self._folder, error)
                self.problem = reason_of(error)
            else:
                self.problem = None
                return
            if self._stopped.wait(RETRY_SECONDS):
                raise PreparationStopped("The requests are not all prepared.")


def _single_lines(block: Block, data: bytes) -> list[Block]:
    """Return a block for each line of one, blank lines included."""
    found, start = [], 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        first = block.first_line + len(found)
        found.append(Block(block.number, block.start + start, block.start + end, first))
        start = end
    return found
