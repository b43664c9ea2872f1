"""What plans for several engines are made with: what one of them says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sglang.srt.blendserve.answering.engine import EngineLost
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.model_config import ConfigError
from sglang.srt.blendserve.dispatch.planner import PlannerSettings
from sglang.srt.blendserve.engines.member import Member
from sglang.srt.blendserve.engines.messages import EngineFacts
from sglang.srt.blendserve.engines.remote_engine import Failed

_ASK_SECONDS = 60.0
"""For an engine's word on itself, which may be in the middle of a long step."""


async def ask_facts(engines: Sequence[Member]) -> EngineFacts:
    """Return what the first of ``engines`` that answers says of itself.

    Raises:
        ConfigError: none says it.
    """
    why = "there is no engine"
    for engine in engines:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return await engine.facts()
        except (EngineLost, Failed, TimeoutError) as error:
            why = str(error) or "an engine does not answer"
    raise ConfigError(why)


def planner_settings_of(
    facts: EngineFacts, cost: CostModel | None, engines: int
) -> PlannerSettings:
    """Return what plans for so many engines are made with.

    Args:
        cost: what work costs on them; None: as they say.

    Raises:
        ValueError: they have no pool of offline requests.
        ConfigError: nobody knows what work costs on them.
    """
    if facts.kv_slots is None:
        raise ValueError("the engines say nothing of a pool of offline requests")
    cost = cost or facts.cost
    if cost is None:
        raise ConfigError(facts.why or "nobody knows what work costs on the engines")
    return PlannerSettings(cost, facts.kv_slots, most_tokens=facts.most_tokens, engines=engines)
