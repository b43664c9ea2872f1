"""What a planner asks the engine that it feeds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

InternalState = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
"""SGLang's ``TokenizerManager.get_internal_state``: what each scheduler says of itself."""


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
