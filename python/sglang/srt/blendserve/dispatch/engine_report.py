"""Asks an engine what waits there, for the planner that feeds it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sglang.srt.blendserve.dispatch.messages import EngineReport

REPORT_SECONDS = 0.5
"""Between two questions. The scheduler answers between two steps, in a millisecond or two."""

InternalState = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
"""SGLang's ``TokenizerManager.get_internal_state``: what each scheduler says of itself."""


async def keep_reporting(ask: InternalState, tell: Callable[[EngineReport], None]) -> None:
    """Tell what waits in an engine, again and again, until it is cancelled.

    Args:
        ask: the engine's.
        tell: gets each report.
    """
    while True:
        if (report := report_of(await ask())) is not None:
            tell(report)
        await asyncio.sleep(REPORT_SECONDS)


def report_of(states: Sequence[Mapping[str, Any]]) -> EngineReport | None:
    """Return what the schedulers of an engine say together; None if they have no pool."""
    pools = [state["blendserve"] for state in states if state.get("blendserve")]
    if not pools:
        return None
    return EngineReport(
        sum(pool["waiting_work"][0] for pool in pools),
        sum(pool["waiting_work"][1] for pool in pools),
        sum(pool["unplanned"] for pool in pools),
    )


async def kv_slots(ask: InternalState) -> int:
    """Return how many tokens the KV cache of an engine holds, over all of its schedulers.

    Raises:
        ValueError: the engine has no pool of offline requests.
    """
    found = sum(state["blendserve"]["kv_slots"] for state in await ask() if "blendserve" in state)
    if not found:
        raise ValueError("the engine has no pool of offline requests")
    return int(found)


async def first_start(ask: InternalState) -> float | None:
    """Return when an engine started its first request of a batch, Unix seconds; None: never."""
    pools = [state["blendserve"] for state in await ask() if state.get("blendserve")]
    times = [pool["first_started_at"] for pool in pools if pool["first_started_at"] is not None]
    return min(times, default=None)
