"""Makes a request store out of an input: worker processes tokenize, one thread writes.

A store that is whole, of the same input and the same model, is taken as it is. Any other is made
anew. Rows can be read as soon as they are written, so planning may begin before the end.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.srt.blendserve.batch_file.line_check import CheckedLine, check_line
from sglang.srt.blendserve.batch_file.lines import RawLine
from sglang.srt.blendserve.batch_file.types import BatchFileError, ErrorCode, LineError
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.requests.across_lines import AcrossLines
from sglang.srt.blendserve.requests.disk_budget import check_room
from sglang.srt.blendserve.requests.fingerprint import model_fingerprint
from sglang.srt.blendserve.requests.inputs import Input
from sglang.srt.blendserve.requests.line_blocks import Block, FileScan, lines_of
from sglang.srt.blendserve.requests.messages import Prepared, Work
from sglang.srt.blendserve.requests.prepare_worker import prepare
from sglang.srt.blendserve.requests.recorder import PreparationStopped, Recorder
from sglang.srt.blendserve.requests.request_store import (
    SEAL_FILE,
    RequestStore,
    delete_store,
    open_whole,
)
from sglang.srt.blendserve.requests.workers import Workers
from sglang.srt.blendserve.store.disk import private_folder

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0
_AHEAD = 4
"""Blocks of a stream for each worker that may wait for one before them."""


class Preparation:
    """The making of one store. Use as a context manager, which ends it.

    Attributes:
        folder: the store's own.
        store: what is there of it, from `begin` on.
        found: what the input holds, from `begin` on.
        begun: whether `store` is there.
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
        self.made = True
        self.begun = False
        self._began = self._ended = 0.0
        self.folder = folder
        self._source, self._rules = source, rules
        self._server_args, self._mend = server_args, mend
        self._count = workers or len(os.sched_getaffinity(0))
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._workers: Workers | None = None
        self._recorder: Recorder | None = None
        self._fingerprint: dict[str, str] = {}
        self._again: deque[Work] = deque()
        self._died: set[tuple[int, int]] = set()
        self._waiting: dict[int, tuple[Block, Prepared]] = {}
        self._next_byte = 0

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
        self._began = time.monotonic()
        if not (self.folder / SEAL_FILE).exists():
            self._start_workers()  # they load for seconds, meanwhile the input is read
        try:
            self.found = self._source.scan()
            self._check_size()
            self._fingerprint = self._make_fingerprint()
            there = open_whole(self.folder, self._fingerprint)
            if there is not None:
                self.store, self.made, self.begun = there, False, True
                self._ended = time.monotonic()
                self._end_workers()
                return
            check_room(self.folder, self.found.size, self.found.lines, self._mend)
            delete_store(self.folder)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            private_folder(self.folder)
            in_order = self._source.in_order_because is not None
            across = AcrossLines(self._rules, in_order=in_order)
            self._recorder = Recorder(self.folder, across, self._stopped)
            self.store, self.begun = RequestStore(self.folder), True
            self._start_workers()
        except BaseException:
            self._ended = time.monotonic()
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
        if self._recorder is not None:
            self._recorder.close()

    @property
    def lines(self) -> int:
        """How many lines have been prepared."""
        return self.found.lines if self._recorder is None else self._recorder.lines

    @property
    def working(self) -> bool:
        """Whether it is being made."""
        return bool(self._began) and not self._ended

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def problem(self) -> str | None:
        """Why writing waits, None when it does not."""
        return None if self._recorder is None else self._recorder.problem

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
            self._ended = time.monotonic()
            self._end_workers()
            if self._recorder is not None:
                self._recorder.close()
                self._recorder = None  # it knows all lines, to compare them

    def _prepare_all(self) -> None:
        assert self._workers is not None
        workers = self._workers
        todo = self._source.work(self.found)
        more = True
        while more or self._again or workers.busy:
            while workers.free and (self._again or len(self._waiting) < _AHEAD * self._count):
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
                    self._take(work.block, found)
        self._finish()

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

    def _take(self, block: Block, rows: Prepared) -> None:
        """Write the rows of a block; of a stream only after those before it."""
        assert self._recorder is not None
        if self._source.in_order_because is None:
            self._recorder.write(rows)
            return
        self._waiting[block.start] = (block, rows)
        while self._next_byte in self._waiting:
            block, rows = self._waiting.pop(self._next_byte)
            self._next_byte = block.end
            self._recorder.write(rows)

    def _finish(self) -> None:
        assert self._recorder is not None
        if not self._source.unchanged() or self.lines != self.found.lines:
            message = "The file has changed while it was read. Start again."
            raise BatchFileError(LineError(code=ErrorCode.INPUT_CHANGED, message=message))
        self._recorder.finish(self._fingerprint, self._reread)

    def _reread(self, line: int, place: int, size: int) -> CheckedLine:
        data = self._read(place, place + size)
        [(raw, _)] = lines_of(data, line, self._rules.max_line_bytes)
        return check_line(RawLine(line, raw.data), self._rules)

    def _read(self, start: int, end: int) -> bytes:
        assert self._source.path is not None
        with open(self._source.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


def _single_lines(block: Block, data: bytes) -> list[Block]:
    """Return a block for each line of one, blank lines included."""
    found: list[Block] = []
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        first = block.first_line + len(found)
        found.append(Block(block.number, block.start + start, block.start + end, first))
        start = end
    return found
