"""A long list, planned as a whole, in front of an engine that holds a window of it.

The engine is played: it answers after some turns of the event loop. The real one is in
``test/runtime/test_sessions.py``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import COST

from sglang.srt.blendserve.dispatch import list_window
from sglang.srt.blendserve.dispatch.list_columns import Prepared
from sglang.srt.blendserve.dispatch.list_window import ListWindow
from sglang.srt.blendserve.dispatch.planner import Planner, PlannerSettings

SETTINGS = PlannerSettings(COST, 4000, most_tokens=4096)


class PlayedItems:
    """Items that hold one token or a hundred, and an engine that answers them."""

    def __init__(
        self, count: int, choices: int = 1, bad: int | None = None, seconds: float = 0.0
    ) -> None:
        self.count, self.choices = count, choices
        self.bad, self.seconds = bad, seconds
        self.sent: list[int] = []
        self.aborted: list[int] = []
        self.running = self.most = 0

    async def prepare(self, items: Sequence[int]) -> list[Prepared]:
        if self.bad in items:
            raise ValueError(f"item {self.bad} is too long")
        return [self.one(item) for item in items]

    def one(self, item: int) -> Prepared:
        long = item >= self.count // 2
        prompt = np.full(1 if long else 100, item, dtype=np.int32)
        return Prepared(prompt, item % 7 != 0, 400 if long else 2, long, "")

    async def answer(self, item: int, prepared: Prepared | None) -> AsyncGenerator[Any, None]:
        if prepared is None:
            self.aborted.append(item)
            yield "aborted"
            return
        self.sent.append(item)
        self.running += self.choices
        self.most = max(self.most, self.running)
        try:
            for turn in range(item % 3 + 1):
                await asyncio.sleep(self.seconds)
                if turn == 2 and self.bad == -item:
                    raise ValueError(f"item {item} fails")
            yield f"answer {item}"
        finally:
            self.running -= self.choices

    def output_tokens(self, output: Any) -> int | None:
        return None if output == "aborted" else 2 * self.choices


async def settings() -> PlannerSettings:
    return SETTINGS


async def no_settings() -> PlannerSettings:
    raise ValueError("the engine has no pool")


async def collect(window: ListWindow) -> dict[int, Any]:
    found: dict[int, Any] = {}
    async for item, output in window.answers():
        assert item not in found
        found[item] = output
    return found


@pytest.mark.parametrize("made", [settings, no_settings])
@given(count=st.integers(1, 200), window=st.integers(1, 40), choices=st.integers(1, 3))
def test_each_item_is_answered_once_within_the_window(
    made: Any, count: int, window: int, choices: int
) -> None:
    items = PlayedItems(count, choices)
    found = asyncio.run(collect(ListWindow(items, "job", window, made)))
    assert found == {item: f"answer {item}" for item in range(count)}
    assert sorted(items.sent) == [*range(count)]
    if made is settings:
        assert items.most <= max(window, choices)


def test_what_the_engine_holds_comes_from_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_window, "FIRST_ITEMS", 8)
    items = PlayedItems(1000, seconds=0.002)
    asyncio.run(collect(ListWindow(items, "job", 32, settings)))
    # As they stand in the list, the long answers all come last.
    for start in range(200, 800, 100):
        assert 35 <= sum(item >= 500 for item in items.sent[start : start + 100]) <= 65


def test_an_item_that_is_wrong_is_raised_at_once() -> None:
    items = PlayedItems(5000, bad=4999)
    with pytest.raises(ValueError, match="item 4999 is too long"):
        asyncio.run(collect(ListWindow(items, "job", 8, settings)))
    assert len(items.sent) < 1000


def test_what_an_answer_raises_ends_the_others() -> None:
    items = PlayedItems(400, bad=-2)
    with pytest.raises(ValueError, match="item 2 fails"):
        asyncio.run(collect(ListWindow(items, "job", 16, settings)))
    assert items.running == 0
    assert len(items.sent) < 400


@pytest.mark.parametrize("fault", [KeyError, IndexError])
def test_a_plan_that_fails_costs_no_item(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def take(*_: Any) -> Any:
        raise fault("job")

    monkeypatch.setattr(Planner, "take", take)
    items = PlayedItems(100)
    found = asyncio.run(collect(ListWindow(items, "job", 4, settings)))
    assert sorted(found) == [*range(100)]
    assert "job cannot be planned" in caplog.text


def test_given_up_in_the_middle_nothing_runs_on() -> None:
    items = PlayedItems(100)

    async def first() -> None:
        answers = ListWindow(items, "job", 4, settings).answers()
        async for _ in answers:
            break
        await answers.aclose()
        assert items.running == 0
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(first())
    assert len(items.sent) < 100


def test_what_is_aborted_before_it_is_sent_is_not_computed() -> None:
    items = PlayedItems(100)
    window = ListWindow(items, "job", 1, settings)

    async def run() -> dict[int, Any]:
        found: dict[int, Any] = {}
        async for item, output in window.answers():
            found[item] = output
            if len(found) == 1:
                caller = threading.Thread(target=window.abort, args=(lambda item: item >= 50,))
                caller.start()
                caller.join()
        return found

    found = asyncio.run(run())
    assert sorted(found) == [*range(100)]
    assert len(items.aborted) >= 45
    assert all(item >= 50 and found[item] == "aborted" for item in items.aborted)
    assert not set(items.sent) & set(items.aborted)
