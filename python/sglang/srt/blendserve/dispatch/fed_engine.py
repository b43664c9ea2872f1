"""The engine, or engines, that lines are planned for, as planning sees them."""

from __future__ import annotations

from typing import Any, Protocol

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.engine_rooms import EngineRooms
from sglang.srt.blendserve.dispatch.engine_settings import planner_settings
from sglang.srt.blendserve.dispatch.engine_state import tell_beyond
from sglang.srt.blendserve.dispatch.planner import PlannerSettings


class FedEngine(Protocol):
    """What planning asks of it. All of it runs on one event loop."""

    @property
    def rooms(self) -> EngineRooms | None:
        """How much more each of several engines may get; None: there is one."""
        ...

    async def planner_settings(self, stop: Stop, cost: CostModel | None) -> PlannerSettings:
        """Return what plans are made with.

        Args:
            stop: ends the waiting for an answer.
            cost: what work costs on an engine, None: to be found out.

        Raises:
            ConfigError: nobody knows what work costs.
            ValueError: it has no pool of offline requests, or does not answer.
        """
        ...

    async def tell_beyond(self, work: RemainingWork) -> None:
        """Tell it how much predicted ``work`` waits elsewhere for it, seconds."""
        ...


class ManagedEngine:
    """The one engine behind a tokenizer manager of SGLang's."""

    rooms = None

    def __init__(self, tokenizer_manager: Any) -> None:
        self._manager = tokenizer_manager

    async def planner_settings(self, stop: Stop, cost: CostModel | None) -> PlannerSettings:
        """Return what plans are made with; see `FedEngine`."""
        return await planner_settings(self._manager, stop, cost)

    async def tell_beyond(self, work: RemainingWork) -> None:
        """Tell the engine how much predicted ``work`` waits elsewhere for it, seconds."""
        await tell_beyond(self._manager, work)
