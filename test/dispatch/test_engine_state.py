"""What an engine is told, and asked, by those who feed it by plan.

pytest test/dispatch/test_engine_state.py
"""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from pools import COST

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.engine_state import (
    ask,
    keep_telling,
    kv_slots,
    tell_beyond,
)
from sglang.srt.blendserve.pool.request_pool import RequestPool

pytestmark = pytest.mark.anyio


async def test_the_pool_of_the_scheduler_reckons_with_what_waits_elsewhere() -> None:
    """SGLang's message between the two is real; only its way through the processes is left out."""
    from sglang.srt.blendserve.runtime.scheduler import BlendScheduler

    pool = RequestPool(COST, 1000)
    scheduler: Any = SimpleNamespace(pool=pool)
    told = []

    async def take(message: Any) -> None:
        told.append(BlendScheduler.set_internal_state(scheduler, message).updated)

    manager = SimpleNamespace(set_internal_state=take)
    work = RemainingWork(3.0, 2.0)
    await keep_telling(partial(tell_beyond, manager), lambda: work, lambda: bool(told))
    assert told == [True]
    assert pool.current.rest == RemainingWork(3.0, 2.0)


async def test_a_question_to_an_engine_that_has_died_ends_with_the_job() -> None:
    stop = Stop()

    async def never() -> list[dict[str, Any]]:
        await asyncio.Event().wait()
        return []

    assert await ask(never, stop, 0.01) is None
    asyncio.get_running_loop().call_soon(stop.request, "engine died")
    assert await ask(never, stop, 600.0) is None


async def test_slots_are_those_of_all_schedulers() -> None:
    assert kv_slots([{"blendserve": {"kv_slots": 5}}, {"blendserve": {"kv_slots": 7}}]) == 12
    with pytest.raises(ValueError, match="pool"):
        kv_slots([{}])
