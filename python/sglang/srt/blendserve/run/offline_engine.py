"""SGLang's engine for one run, in this process: Ctrl-C and the deadline end it in order."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from sglang.srt.blendserve.answering.engine import Engine
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.dispatch.engine_state import InternalState
from sglang.srt.blendserve.dispatch.fed_engine import FedEngine, ManagedEngine
from sglang.srt.blendserve.engines.local_engine import LocalEngine
from sglang.srt.blendserve.run.deadline import Deadline, status_of
from sglang.srt.blendserve.run.failure import RunFailure

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

STOPPED_AT_START = "Stopped while the engine was starting; no request was sent."


class OfflineEngine(LocalEngine):
    """A started engine. Use as a context manager."""

    standings = None
    """There is one."""

    def __init__(self, server_args: ServerArgs, deadline: Deadline) -> None:
        """Start the engine; takes seconds to minutes.

        Args:
            deadline: of the run.

        Raises:
            RunFailure: it did not start, or Ctrl-C or the deadline came first.
        """
        self._deadline = deadline
        try:
            with deadline.interrupting():
                super().__init__(server_args)
        except KeyboardInterrupt as interrupt:
            raise RunFailure(STOPPED_AT_START, status_of(interrupt)) from interrupt
        except Exception as error:  # of any kind, inside SGLang
            raise RunFailure(f"The engine did not start: {error}") from error

    def __enter__(self) -> OfflineEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def fed(self) -> FedEngine:
        """The engine as planning sees it."""
        return ManagedEngine(self.tokenizer_manager)

    @property
    def states(self) -> InternalState:
        """Asks the engine for its state."""
        question: InternalState = self.tokenizer_manager.get_internal_state
        return question

    def executor(self) -> Engine:
        """Return what answers lines on it."""
        from sglang.srt.blendserve.answering.executor import Executor

        return Executor(self.tokenizer_manager, self.template_manager, keep_prompts=True)

    def answer(self, work: Awaitable[None], stop: Stop) -> None:
        """Await ``work`` on the engine's event loop; see `LocalEngine.run`.

        ``stop`` is requested as "interrupted" on SIGINT or SIGTERM, too, and as "time is up" at the
        deadline.
        """
        self.run(work, stop, on_signal=lambda: interrupt(stop), seconds=self._deadline.left)


def interrupt(stop: Stop) -> None:
    """A signal asks the run to end."""
    if stop.reason is None:
        print("\nStopping; what is done is kept.", file=sys.stderr)
    stop.request("interrupted")
