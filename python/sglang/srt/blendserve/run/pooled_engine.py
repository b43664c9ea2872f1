"""Several engines for one run, each in a process of its own: on this machine, or wherever Ray has
room."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from sglang.srt.blendserve.answering.engine import Engine
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.model_config import ConfigError
from sglang.srt.blendserve.dispatch.engine_state import InternalState
from sglang.srt.blendserve.dispatch.fed_engine import FedEngine
from sglang.srt.blendserve.engines.engine_pool import EnginePool, EngineStanding
from sglang.srt.blendserve.engines.link import Link
from sglang.srt.blendserve.run.deadline import Deadline, status_of
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.offline_engine import STOPPED_AT_START, interrupt
from sglang.srt.blendserve.runtime.compat.server_args import release

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

StartEngine = Callable[[int], Awaitable[Link]]
"""Starts the engine of a number; see `EnginePool`."""


class PooledEngine:
    """Started engines, which the run uses as one. Use as a context manager.

    Attributes:
        startup_seconds: how long the first engine's start took.
    """

    def __init__(
        self,
        server_args: ServerArgs,
        deadline: Deadline,
        start: StartEngine,
        engines: int,
        window: int,
        restarts: int,
    ) -> None:
        """Start the engines; return when the first one has started, seconds to minutes later.

        Args:
            server_args: of each engine, resolved.
            deadline: of the run.
            start: starts the engine of a number.
            window: most lines in one engine.
            restarts: how often in a row to start an engine again that died without an answer.

        Raises:
            RunFailure: none has started, or Ctrl-C or the deadline came first.
        """
        self._deadline = deadline
        self._loop = asyncio.new_event_loop()
        self._pool = EnginePool(
            start,
            engines,
            window,
            restarts=restarts,
            say=_say,
            watchdog_seconds=float(release.view(server_args).watchdog_timeout),
        )
        try:
            with deadline.interrupting():
                self._loop.run_until_complete(self._pool.begin())
        except KeyboardInterrupt as stopped:
            self._close()
            raise RunFailure(STOPPED_AT_START, status_of(stopped)) from stopped
        except Exception as error:  # of any kind, inside SGLang
            self._close()
            raise RunFailure(f"No engine did start: {error}") from error
        self.startup_seconds = self._pool.startup_seconds

    def __enter__(self) -> PooledEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def fed(self) -> FedEngine:
        """The engines as planning sees them."""
        return self._pool

    @property
    def states(self) -> InternalState:
        """Asks the engines for their state."""
        return self._pool.states

    def executor(self) -> Engine:
        """Return what answers lines on them."""
        return self._pool

    @property
    def standings(self) -> Callable[[], Sequence[EngineStanding]]:
        """Returns how each engine is doing."""
        return self._pool.standings

    def cost_model(self) -> CostModel:
        """Return what requests cost on the first engine (measures a CPU: 2 seconds).

        Raises:
            ConfigError: the model's config lacks a field that it needs.
        """
        try:
            with self._deadline.interrupting():
                facts = self._loop.run_until_complete(self._pool.facts())
        except KeyboardInterrupt as stopped:
            raise RunFailure(STOPPED_AT_START, status_of(stopped)) from stopped
        if facts.cost is None:
            raise ConfigError(facts.why or "nobody knows what work costs on the engines")
        return facts.cost

    def answer(self, work: Awaitable[None], stop: Stop) -> None:
        """Await ``work`` on the engines' event loop.

        ``stop`` is requested as "interrupted" on SIGINT or SIGTERM, as "time is up" at the
        deadline, and as "no engine" when there is none any more.
        """
        self._loop.run_until_complete(self._answer(work, stop))

    async def _answer(self, work: Awaitable[None], stop: Stop) -> None:
        loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, interrupt, stop)
        left = self._deadline.left
        alarm = None if left is None else loop.call_later(left, stop.request, "time is up")
        watching = asyncio.create_task(self._pool.until_ended(stop))
        try:
            await work
        finally:
            if alarm is not None:
                alarm.cancel()
            watching.cancel()
            await asyncio.wait({watching})

    def _close(self) -> None:
        self._loop.run_until_complete(self._pool.close())
        self._loop.close()


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)
