"""SGLang's engine for one run, in this process, that outlives Ctrl-C and whose death is noticed.

Stock `sglang.Engine` is made for scripts: Ctrl-C ends its scheduler processes at the same moment
as the script, and when one of them dies the engine kills the script. Here results must be kept
first, so both become calls that the run waits for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.answering.liveness import Liveness
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.dispatch.engine_cost import engine_cost_model
from sglang.srt.blendserve.run.deadline import Deadline, status_of
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.runtime.compat.server_args import release

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


class OfflineEngine:
    """A started engine. Use as a context manager.

    Attributes:
        startup_seconds: how long the start took.
    """

    def __init__(self, server_args: ServerArgs, deadline: Deadline) -> None:
        """Start the engine; takes seconds to minutes.

        Args:
            deadline: of the run.

        Raises:
            RunFailure: it did not start, or Ctrl-C or the deadline came first.
        """
        if server_args.tokenizer_worker_num != 1:
            raise RunFailure("--tokenizer-worker-num must be 1: the run tokenizes in one process.")
        self._deadline = deadline
        started = time.perf_counter()
        try:
            with deadline.interrupting():
                self._engine = _start(server_args)
        except KeyboardInterrupt as interrupt:
            _kill_children()
            message = "Stopped while the engine was starting; no request was sent."
            raise RunFailure(message, status_of(interrupt)) from interrupt
        except Exception as error:
            _kill_children()
            raise RunFailure(f"The engine did not start: {error}") from error
        self.startup_seconds = time.perf_counter() - started

    def __enter__(self) -> OfflineEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.shutdown()

    @property
    def tokenizer_manager(self) -> Any:
        """SGLang's tokenizer manager, which requests go through."""
        return self._engine.tokenizer_manager

    @property
    def template_manager(self) -> Any:
        """SGLang's chat templates."""
        return self._engine.template_manager

    def cost_model(self) -> CostModel:
        """Return what requests cost on this model and device (measures a CPU: 2 seconds).

        Raises:
            ConfigError: the model's config lacks a field that it needs.
        """
        return engine_cost_model(self.tokenizer_manager)

    def run(self, work: Awaitable[None], stop: Stop) -> None:
        """Await ``work`` on the engine's event loop.

        ``stop`` is requested as "interrupted" on SIGINT or SIGTERM, as "time is up" at the
        deadline, and as "engine died" when one of the engine's processes has ended or none has
        answered for a long time (`Liveness`, with SGLang's ``--watchdog-timeout`` as its floor).
        """
        self._engine.loop.run_until_complete(self._run(work, stop))

    async def _run(self, work: Awaitable[None], stop: Stop) -> None:
        loop = asyncio.get_running_loop()
        manager = self._engine.tokenizer_manager
        manager.signal_handler_class = lambda _: _Signals(stop)
        manager.auto_create_handle_loop()
        loop.add_signal_handler(signal.SIGINT, _Signals(stop).sigterm_handler)
        watching = asyncio.create_task(self._watch(stop))
        left = self._deadline.left
        alarm = None if left is None else loop.call_later(left, stop.request, "time is up")
        try:
            await work
        finally:
            if alarm is not None:
                alarm.cancel()
            tasks = {watching, *manager.asyncio_tasks}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The signal handlers stay: a late SIGQUIT would otherwise end this process.

    async def _watch(self, stop: Stop) -> None:
        manager, fields = self.tokenizer_manager, release.view(self._engine.server_args)
        liveness = Liveness(manager.get_internal_state, float(fields.watchdog_timeout))
        await liveness.wait_for_death(busy=lambda: True)
        stop.request("engine died")


class _Signals:
    """What SGLang's tokenizer manager does on signals, under the names that it calls."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def sigterm_handler(self, signum: int | None = None, frame: FrameType | None = None) -> None:
        if self._stop.reason is None:
            print("\nStopping; what is done is kept.", file=sys.stderr)
        self._stop.request("interrupted")

    def running_phase_sigquit_handler(
        self, signum: int | None = None, frame: FrameType | None = None
    ) -> None:
        # A scheduler sends SIGQUIT when it fails, SGLang's watchdog when a process is gone.
        self._stop.request("engine died")


def _start(server_args: ServerArgs) -> Any:
    from sglang.srt.entrypoints.engine import Engine

    class ShieldedEngine(Engine):
        """An engine whose processes do not see SIGINT and SIGTERM: a terminal sends them to all."""

        @classmethod
        def _launch_scheduler_processes(cls, *args: Any, **kwargs: Any) -> Any:
            # By now SGLang has set its handler, which would end this process without a word.
            signal.signal(signal.SIGQUIT, _raise_start_failure)
            with _signals_blocked():
                return super()._launch_scheduler_processes(*args, **kwargs)

        @classmethod
        def _launch_detokenizer_subprocesses(cls, *args: Any, **kwargs: Any) -> Any:
            with _signals_blocked():
                return super()._launch_detokenizer_subprocesses(*args, **kwargs)

    return ShieldedEngine(server_args=server_args)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have processes started meanwhile inherit a mask that blocks SIGINT and SIGTERM."""
    resource_tracker.ensure_running()  # it is started with the first process and unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise_start_failure(signum: int, frame: FrameType | None) -> None:
    raise RuntimeError("one of its processes failed; its error stands above")


def _kill_children() -> None:
    from sglang.srt.utils import kill_process_tree

    kill_process_tree(os.getpid(), include_parent=False)
