"""The worker processes of a preparation: started, fed, watched, and started again."""

from __future__ import annotations

import contextlib
import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, NamedTuple

from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.requests import prepare_worker
from sglang.srt.blendserve.requests.messages import Prepared, Work, pack_work, unpack_prepared

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

CPU_SECONDS = 60.0
"""Processor time that a block may take; what needs more is taken to have no end."""

_STARTS = 3
"""How often in a row a worker may end while it starts. Stopping an engine ends all of a process's
children, workers too."""


class WorkerFailed(RuntimeError):
    """No worker can be started; the message says why."""


class Outcome(NamedTuple):
    """What came of some work: its rows, or None where its worker has died over it."""

    work: Work
    rows: Prepared | None


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    messages: Connection
    ready: bool = False
    work: Work | None = None
    cpu_before: float = 0.0


class Workers:
    """Some worker processes. Each has one block at a time. Used by one thread."""

    def __init__(self, count: int, server_args: ServerArgs, path: str | None, rules: Rules) -> None:
        """Start ``count`` processes; see `prepare_worker.main`."""
        self._arguments = (server_args, path, rules)
        self._failed_starts = 0
        self._workers: list[_Worker] = []
        for _ in range(count):
            self._start()

    @property
    def free(self) -> int:
        """How many wait for work."""
        return sum(worker.ready and worker.work is None for worker in self._workers)

    @property
    def ready(self) -> int:
        """How many have started."""
        return sum(worker.ready for worker in self._workers)

    @property
    def busy(self) -> int:
        """How many have some."""
        return sum(worker.work is not None for worker in self._workers)

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes."""
        return [worker.process.pid for worker in self._workers if worker.process.pid]

    def give(self, work: Work) -> None:
        """Give work to a worker that is free."""
        worker = next(one for one in self._workers if one.ready and one.work is None)
        worker.work, worker.cpu_before = work, _cpu_seconds(worker.process)
        with contextlib.suppress(OSError):  # it has died, which `wait` will find
            worker.messages.send_bytes(pack_work(work))

    def wait(self, seconds: float) -> list[Outcome]:
        """Return what has come within a time.

        Raises:
            WorkerFailed: workers do not start.
        """
        found = []
        by_messages = {worker.messages: worker for worker in self._workers}
        for messages in wait(list(by_messages), seconds):
            worker = by_messages[messages]  # type: ignore[index]
            try:
                content = worker.messages.recv_bytes()
            except (EOFError, OSError):
                if worker.work is not None:
                    found.append(Outcome(worker.work, None))
                self._replace(worker)
                continue
            if worker.ready:
                assert worker.work is not None
                found.append(Outcome(worker.work, unpack_prepared(content)))
                worker.work = None
            elif content == prepare_worker.READY:
                worker.ready, self._failed_starts = True, 0
            else:
                reason = content.removeprefix(prepare_worker.FAILED).decode(errors="replace")
                raise WorkerFailed(f"The requests cannot be tokenized: {reason}")
        for worker in filter(lambda one: one.work is not None, self._workers):
            if _cpu_seconds(worker.process) - worker.cpu_before > CPU_SECONDS:
                worker.process.kill()
        return found

    def close(self) -> None:
        """End the processes. Calling it twice does nothing."""
        for worker in self._workers:
            worker.messages.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=prepare_worker.main,
            args=(theirs, *self._arguments),
            name="blendserve-prepare",
            daemon=True,
        )
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _replace(self, worker: _Worker) -> None:
        worker.messages.close()
        worker.process.kill()
        worker.process.join()
        self._workers.remove(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                status = worker.process.exitcode
                raise WorkerFailed(
                    f"The processes that tokenize the requests end while they start (status "
                    f"{status}); their errors, if they had any, stand above."
                )
        self._start()


def _cpu_seconds(process: SpawnProcess) -> float:
    import psutil

    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
