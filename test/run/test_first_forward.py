"""When the first forward pass began, of a run that ends and of one that is stopped.

Run: pytest test/run/test_first_forward.py
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.run import first_forward
from sglang.srt.blendserve.run.first_forward import FirstForward

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_forward, "_SOON_SECONDS", 0.01)


class Engine:
    """Says when it started, once it has."""

    def __init__(self) -> None:
        self.started: float | None = None

    async def state(self) -> list[dict[str, Any]]:
        return [{"blendserve": {"first_started_at": self.started}}]


async def test_it_is_known_of_a_run_that_is_stopped() -> None:
    found, engine = FirstForward(), Engine()

    async def stopped() -> None:
        async with found.watched(engine.state, Stop()):
            await asyncio.sleep(0.03)
            assert found.seconds is None
            engine.started = time.time()
            await asyncio.sleep(0.2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await stopped()
    assert found.seconds is not None
    assert 0 < found.seconds < 1


async def test_it_is_known_of_one_that_ends_at_once() -> None:
    found, engine = FirstForward(), Engine()
    async with found.watched(engine.state, Stop()):
        engine.started = time.time()
    assert found.seconds is not None
    first = found.seconds
    async with found.watched(engine.state, Stop()):  # an engine that was started again
        engine.started = time.time() + 9
    assert found.seconds == first


async def test_an_engine_that_never_started_leaves_it_open() -> None:
    found = FirstForward()
    async with found.watched(Engine().state, Stop()):
        await asyncio.sleep(0.05)
    assert found.seconds is None
