"""What the engine is asked and told by those who feed it by plan."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.settings import BEYOND_COMPUTE, BEYOND_MEMORY

InternalState = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
"""SGLang's ``TokenizerManager.get_internal_state``: what each scheduler says of itself."""


_TELL_SECONDS = 1.0
"""Between two messages to the scheduler, which takes them between two steps."""


async def keep_telling(tokenizer_manager: Any, left: Callable[[], RemainingWork]) -> None:
    """Tell an engine how much work waits elsewhere for it, again and again, until cancelled.

    Args:
        tokenizer_manager: the engine's.
        left: returns the predicted work, seconds.
    """
    told = None
    while True:
        if (work := left()) != told:
            await tell_beyond(tokenizer_manager, work)
            told = work
        await asyncio.sleep(_TELL_SECONDS)


async def tell_beyond(tokenizer_manager: Any, work: RemainingWork) -> None:
    """Tell an engine how much predicted ``work`` waits elsewhere for it, seconds."""
    from sglang.srt.managers.io_struct import SetInternalStateReq

    given = {BEYOND_COMPUTE: work.compute, BEYOND_MEMORY: work.memory}
    await tokenizer_manager.set_internal_state(SetInternalStateReq(server_args=given))


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
