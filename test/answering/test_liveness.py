"""An engine that does not answer is told from one that takes its time."""

from __future__ import annotations

import asyncio

import pytest

from sglang.srt.blendserve.answering.liveness import Liveness

pytestmark = pytest.mark.anyio


async def test_an_engine_that_answers_is_asked_again_and_again() -> None:
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1

    watching = asyncio.create_task(Liveness(ask, 0.01).wait_for_death(lambda: True))
    while asked < 20:
        await asyncio.sleep(0.01)
    assert not watching.done()
    watching.cancel()


async def test_an_engine_that_never_answers_is_dead_and_an_idle_one_is_not_asked() -> None:
    busy, asked = False, 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    watching = asyncio.create_task(Liveness(ask, 0.01).wait_for_death(lambda: busy))
    await asyncio.sleep(0.1)
    assert asked == 0
    busy = True
    await asyncio.wait_for(watching, 10)
    assert asked == 1


async def test_the_bound_follows_the_longest_answer() -> None:
    pause = 0.05
    liveness = Liveness(lambda: asyncio.sleep(pause), 0.2)
    assert liveness.bound == 0.2
    assert await liveness._answers()
    assert liveness.bound > 10 * pause  # 20 times what one clock saw of another's pause
    assert await Liveness(lambda: asyncio.sleep(0), 5.0)._answers()


async def test_an_engine_that_cannot_be_asked_is_not_dead_for_that() -> None:
    async def ask() -> None:
        raise RuntimeError("not now")

    assert await Liveness(ask, 0.2)._answers()
