"""What the engine is asked and told by those who feed it by plan."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.settings import BEYOND_COMPUTE, BEYOND_MEMORY

InternalState = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
"""SGLang's ``TokenizerManager.get_internal_state``: what each scheduler says of itself."""


TELL_SECONDS = 1.0
"""Between two messages to the scheduler, which takes them between two steps."""


async def ask(
    question: InternalState, stop: Stop, seconds: float
) -> Sequence[Mapping[str, Any]] | None:
    """Return what an engine says of itself; None if it does not answer in time, or the job stops.

    An engine that has died never answers. The question stands until then: given up, it would leave
    SGLang's own bookkeeping of questions behind.
    """
    asked, stopped = asyncio.ensure_future(question()), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({asked, stopped}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    return asked.result() if asked.done() else None


async def keep_telling(
    tell: Callable[[RemainingWork], Awaitable[None]],
    left: Callable[[], RemainingWork],
    closed: Callable[[], bool],
) -> None:
    """Tell an engine how much work waits elsewhere for it, again and again.

    Args:
        tell: tells the engine.
        left: returns the predicted work, seconds.
        closed: whether it is enough.
    """
    told = RemainingWork(0.0, 0.0)
    while not closed():
        work = left()
        # Again even if it is the same: an engine that runs empty forgets it.
        if any(work) or work != told:
            await tell(work)
            told = work
        await asyncio.sleep(TELL_SECONDS)


async def tell_beyond(tokenizer_manager: Any, work: RemainingWork) -> None:
    """Tell an engine how much predicted ``work`` waits elsewhere for it, seconds."""
    from sglang.srt.managers.io_struct import SetInternalStateReq

    given = {BEYOND_COMPUTE: work.compute, BEYOND_MEMORY: work.memory}
    await tokenizer_manager.set_internal_state(SetInternalStateReq(server_args=given))


def kv_slots(states: Sequence[Mapping[str, Any]]) -> int:
    """Return how many tokens the KV cache of an engine holds, over all of its schedulers.

    Raises:
        ValueError: the engine has no pool of offline requests.
    """
    found = sum(state["blendserve"]["kv_slots"] for state in states if state.get("blendserve"))
    if not found:
        raise ValueError("the engine says nothing of a pool of offline requests")
    return int(found)


def first_start(states: Sequence[Mapping[str, Any]]) -> float | None:
    """Return when an engine started its first request of a batch, Unix seconds; None: never."""
    pools = [state["blendserve"] for state in states if state.get("blendserve")]
    times = [pool["first_started_at"] for pool in pools if pool["first_started_at"] is not None]
    return min(times, default=None)
