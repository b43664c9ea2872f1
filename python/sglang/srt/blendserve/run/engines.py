"""The engine, or the engines, of a run as its flags have them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from sglang.srt.blendserve.run.deadline import Deadline
from sglang.srt.blendserve.run.failure import RunFailure

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

    from sglang.srt.server_args import ServerArgs

    from sglang.srt.blendserve.answering.engine import Engine
    from sglang.srt.blendserve.answering.stop import Stop
    from sglang.srt.blendserve.cost.cost_model import CostModel
    from sglang.srt.blendserve.dispatch.engine_state import InternalState
    from sglang.srt.blendserve.dispatch.fed_engine import FedEngine
    from sglang.srt.blendserve.engines.engine_pool import EngineStanding
    from sglang.srt.blendserve.run.pooled_engine import StartEngine


class StartedEngine(Protocol):
    """What a run needs of its engine, or of its engines as one. A context manager.

    Attributes:
        startup_seconds: how long the start took.
    """

    startup_seconds: float

    def __enter__(self) -> StartedEngine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    @property
    def fed(self) -> FedEngine:
        """It as planning sees it."""
        ...

    @property
    def states(self) -> InternalState:
        """Asks it for its state."""
        ...

    @property
    def standings(self) -> Callable[[], Sequence[EngineStanding]] | None:
        """Returns what each of several engines does; None: there is one."""
        ...

    def executor(self) -> Engine:
        """Return what answers lines on it."""
        ...

    def cost_model(self) -> CostModel:
        """Return what requests cost on it. Raises ConfigError where nobody knows."""
        ...

    def answer(self, work: Awaitable[None], stop: Stop) -> None:
        """Await ``work`` on its event loop, and request a ``stop`` where there is a reason."""
        ...


def start(
    args: argparse.Namespace,
    server_args: ServerArgs,
    deadline: Deadline,
    *,
    threads_given: bool,
) -> StartedEngine:
    """Start the engine, or the engines.

    Args:
        args: the command's.
        server_args: of each engine, resolved.
        deadline: of the run.
        threads_given: whether the user has said how many threads an engine on a CPU has.

    Raises:
        RunFailure: there is none.
    """
    if args.engines == 1 and args.ray_address is None:
        from sglang.srt.blendserve.run.offline_engine import OfflineEngine

        return OfflineEngine(server_args, deadline)
    from sglang.srt.blendserve.run.pooled_engine import PooledEngine

    start_engine = _starter(args, server_args, threads_given)
    return PooledEngine(
        server_args,
        deadline,
        start_engine,
        args.engines,
        args.max_in_flight,
        args.max_engine_restarts,
    )


def _starter(args: argparse.Namespace, server_args: ServerArgs, threads_given: bool) -> StartEngine:
    if args.ray_address is not None:
        from sglang.srt.blendserve.engines.ray_link import ray_starter

        given = any(flag.partition("=")[0] == "--device" for flag in args.server_flags)
        try:
            return ray_starter(
                server_args, args.ray_address, device_given=given, threads_given=threads_given
            )
        except (ImportError, ConnectionError, ValueError, RuntimeError) as error:
            raise RunFailure(f"No engines by Ray: {error}") from error
    from sglang.srt.blendserve.engines import placement
    from sglang.srt.blendserve.engines.link import Link
    from sglang.srt.blendserve.engines.process_link import ProcessLink

    try:
        placed = placement.divided(args.engines, server_args, threads_given=threads_given)
    except ValueError as error:
        raise RunFailure(str(error)) from error

    async def start_engine(number: int) -> Link:
        return await ProcessLink.start(server_args, placed[number], keep_prompts=True)

    return start_engine
