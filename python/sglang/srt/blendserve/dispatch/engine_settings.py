"""What plans for the engine behind a tokenizer manager of SGLang's are made with."""

from __future__ import annotations

import asyncio
from typing import Any

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.dispatch.engine_cost import engine_cost_model
from sglang.srt.blendserve.dispatch.engine_state import ask, kv_slots
from sglang.srt.blendserve.dispatch.planner import PlannerSettings

_ASK_SECONDS = 60.0
"""For the first answer of an engine, which may be in the middle of a long step."""


async def planner_settings(
    tokenizer_manager: Any, stop: Stop, cost: CostModel | None = None
) -> PlannerSettings:
    """Return them.

    Args:
        tokenizer_manager: the engine's.
        stop: ends the waiting for the engine's answer.
        cost: what work costs on the engine, None: found out, which measures a CPU for 2 seconds.

    Raises:
        ConfigError: nobody knows what work costs on the engine.
        ValueError: the engine has no pool of offline requests, or does not answer.
    """
    if cost is None:
        cost = await asyncio.to_thread(engine_cost_model, tokenizer_manager)
    states = await ask(tokenizer_manager.get_internal_state, stop, _ASK_SECONDS)
    return PlannerSettings(
        cost,
        kv_slots(states or ()),
        most_tokens=int(tokenizer_manager.context_len),
    )
