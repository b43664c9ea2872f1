"""SGLang's engine in this process, without its habit of ending the process.

Stock `sglang.Engine` is made for scripts: Ctrl-C ends its scheduler processes at the same moment
as the script, and when one of them dies the engine kills the script. Here results must be kept
first, so both become calls that whoever runs it waits for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.answering.liveness import Liveness
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.dispatch.engine_cost import engine_cost_model
from sglang.srt.blendserve.runtime.compat.server_args import release

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


class LocalEngine:
    """A started engine.

    Attributes:
        startup_seconds: how long the start took.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        """Start the engine; takes seconds to minutes, in the main thread.

        Raises:
            ValueError: one of its settings is not for an engine in one process.
            Exception: it did not start. Nothing is left of it.
        """
        if server_args.tokenizer_worker_num != 1:
            raise ValueError("--tokenizer-worker-num must be 1: one process takes all requests in.")
        started = time.perf_counter()
        try:
            self._engine = _start(server_args)
        except BaseException:
            kill_children()
            raise
        self.startup_seconds = time.perf_counter() - started

    def shutdown(self) -> None:
        """End the engine."""
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

    def run(
        self,
        work: Awaitable[None],
        stop: Stop,
        *,
        on_signal: Callable[[], None] = lambda: None,
        seconds: float | None = None,
    ) -> None:
        """Await ``work`` on the engine's event loop.

        ``stop`` is requested as "time is up" after so many ``seconds``, and as "engine died" when
        one of the engine's processes has ended or none has answered for a long time (`Liveness`,
        with SGLang's ``--watchdog-timeout`` as its floor).

        Args:
            on_signal: called on SIGINT and SIGTERM.
        """
        self._engine.loop.run_until_complete(self._run(work, stop, on_signal, seconds))

    async def _run(
        self,
        work: Awaitable[None],
        stop: Stop,
        on_signal: Callable[[], None],
        seconds: float | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        manager = self._engine.tokenizer_manager
        manager.signal_handler_class = lambda _: _Signals(stop, on_signal)
        manager.auto_create_handle_loop()
        loop.add_signal_handler(signal.SIGINT, on_signal)
        watching = asyncio.create_task(self._watch(stop))
        alarm = None if seconds is None else loop.call_later(seconds, stop.request, "time is up")
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

    def __init__(self, stop: Stop, on_signal: Callable[[], None]) -> None:
        self._stop, self._on_signal = stop, on_signal

    def sigterm_handler(self, signum: int | None = None, frame: FrameType | None = None) -> None:
        self._on_signal()

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


def kill_children() -> None:
    """End all processes that this one has started."""
    from sglang.srt.utils import kill_process_tree

    kill_process_tree(os.getpid(), include_parent=False)
