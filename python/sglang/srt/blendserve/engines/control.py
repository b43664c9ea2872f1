"""What is asked of an engine besides answers, and what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from sglang.srt.blendserve.cost.model_config import ConfigError
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.engine_cost import engine_cost_model
from sglang.srt.blendserve.dispatch.engine_state import kv_slots, tell_beyond
from sglang.srt.blendserve.engines.messages import EngineFacts

States = Sequence[Mapping[str, Any]]


class EngineControl(Protocol):
    """One engine, as those see it who feed it. All of it runs on one event loop."""

    async def facts(self) -> EngineFacts:
        """Return what is known of the engine."""
        ...

    async def states(self) -> States:
        """Return what each of its schedulers says of itself."""
        ...

    async def tell_beyond(self, work: RemainingWork) -> None:
        """Tell it how much predicted ``work`` waits elsewhere for it, seconds."""
        ...


class LocalControl:
    """An engine in this process."""

    def __init__(self, tokenizer_manager: Any) -> None:
        """``tokenizer_manager``: the engine's, SGLang's."""
        self._manager = tokenizer_manager

    async def facts(self) -> EngineFacts:
        """Return what is known of the engine; measures a CPU for two seconds."""
        cost, why = None, None
        try:
            cost = await asyncio.to_thread(engine_cost_model, self._manager)
        except ConfigError as error:
            why = str(error)
        slots = None
        with suppress(ValueError):  # under a policy of SGLang's
            slots = kv_slots(await self._manager.get_internal_state())
        return EngineFacts(
            kv_slots=slots,
            most_tokens=int(self._manager.context_len),
            cost=cost,
            why=why,
        )

    async def states(self) -> States:
        """Return what each of the engine's schedulers says of its pool of offline requests."""
        states = await self._manager.get_internal_state()
        return [{"blendserve": state.get("blendserve")} for state in states]

    async def tell_beyond(self, work: RemainingWork) -> None:
        """Tell the engine how much predicted ``work`` waits elsewhere for it, seconds."""
        await tell_beyond(self._manager, work)
