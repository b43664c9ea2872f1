"""Forecasts of batches: what a price is, and what it is a price of.

pytest test/server/test_forecasts.py
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import MODEL, Held, ScriptedEngine, line, serve

from sglang.srt.blendserve.answering.rate_meter import RateMeter
from sglang.srt.blendserve.server.forecasts import Outlook, Price, Prices, prices_of
from sglang.srt.blendserve.server.gpu_time import Done, GpuTime
from sglang.srt.blendserve.server.open_batch import Before
from sglang.srt.blendserve.store.batch_table import EndedBatch
from sglang.srt.blendserve.store.tally import Tally

CHATS, WORDS = "/v1/chat/completions", "/v1/completions"


def work(tally: Tally) -> float | None:
    """Seconds of predicted work: a hundredth of a second for each token of the output."""
    return tally.output_tokens / 100


def ended(
    endpoint: str, gpu_seconds: float, input_bytes: int, tokens: int, caps: int | None = None
) -> EndedBatch:
    tally = Tally(completed=10, output_tokens=tokens)
    return EndedBatch(endpoint, gpu_seconds, input_bytes, tally, caps)


def capped(custom_id: str, cap: Any) -> dict[str, Any]:
    return line(custom_id, body={"model": MODEL, "prompt": "hello", "max_tokens": cap})


def test_what_an_endpoint_s_batches_have_cost() -> None:
    before = [
        ended(CHATS, 10.0, 100, 2000, caps=8000),
        ended(CHATS, 30.0, 300, 2000),  # a line of it had no cap
        ended(WORDS, 1.0, 5, 0),
    ]
    found = prices_of(before, work)
    assert found == {CHATS: Price(0.1, 1.0, ((800, 0.25),)), WORDS: Price(0.2)}
    assert prices_of(before, lambda tally: None)[CHATS] == Price(0.1, None, ((800, 0.25),))
    assert prices_of([], work) == {}


def test_what_lines_use_of_their_caps_is_taken_from_lines_with_caps_like_theirs() -> None:
    price = Price(lengths=((16, 1.0), (30, 0.5), (1_000_000, 0.0001)))
    assert price.used_of(7) is None
    assert price.used_of(8) == 1.0
    assert price.used_of(20) == 0.75
    assert price.used_of(60) == 0.5
    assert price.used_of(61) is None
    assert price.used_of(2_000_000) == 0.0001


class Run(SimpleNamespace):
    """An open batch of which ``answered`` of 100 lines were answered, with 20 tokens each."""

    def __init__(self, name: str = "a", answered: int = 0, **more: Any) -> None:
        usual: dict[str, Any] = {
            "id": name,
            "endpoint": CHATS,
            "waits": False,
            "priority": 0,
            "begun": answered > 0,
            "tally": Tally(completed=answered, output_tokens=20 * answered),
            "lines": 100,
            "lines_left": 100 - answered,
            "done": Done.by_work(answered / 100),
            "ended": None,
            "before": Before(),
            "output_caps": None,
            "input_bytes": 100,
            "gpu_seconds": 0.0,
            "seconds_left": None,
        }
        super().__init__(**usual | more)


def record(**more: Any) -> Any:
    usual = {"id": "a", "in_progress_at": int(time.time()), "expires_at": int(time.time()) + 9000}
    return SimpleNamespace(**usual | more)


def outlook(prices: Prices, *runs: Run) -> Outlook:
    gpu_time = GpuTime(lambda: 1, lambda tally: 1.0)
    there: Any = {run.id: run for run in runs}
    engine = ScriptedEngine()
    engine.work = work  # type: ignore[method-assign]
    return Outlook(there, engine, gpu_time, RateMeter(), prices)


COST: Prices = {CHATS: Price(of_byte=1.0, of_work=4.0)}


@pytest.mark.parametrize(("answered", "gpu_seconds"), [(0, 100.0), (15, 100.0), (16, 80.0)])
def test_predicted_work_counts_once_lengths_have_been_seen(
    answered: int, gpu_seconds: float
) -> None:
    """100 bytes at 1 second each, or 16 lines of 0.2 seconds of work at 4, which are 16 %."""
    found = outlook(COST, Run(answered=answered, ended=0.16)).of(record())
    assert found is not None
    assert found.gpu_seconds == pytest.approx(gpu_seconds)
    assert abs(found.ends_at - time.time() - gpu_seconds) <= 2


def test_bytes_count_where_no_work_is_known() -> None:
    for run, cost in (
        (Run(answered=50), COST),
        (Run(answered=50, ended=0.0), COST),
        (Run(answered=50, ended=0.5), {CHATS: Price(of_byte=1.0)}),
    ):
        found = outlook(cost, run).of(record())
        assert found is not None
        assert found.gpu_seconds == 100
    assert outlook({}, Run()).of(record()) is None


@pytest.mark.parametrize(("output_caps", "gpu_seconds"), [(8000, 80.0), (None, 100.0)])
def test_caps_say_how_long_outputs_will_be_where_there_is_no_plan(
    output_caps: int | None, gpu_seconds: float
) -> None:
    """A quarter of the 8,000 tokens that are allowed, a hundredth of a second of work for each."""
    run = Run(answered=20, output_caps=output_caps)
    run.done = Done.by_lines(0.2)
    found = outlook({CHATS: Price(1.0, 4.0, ((80, 0.25),))}, run).of(record())
    assert found is not None
    assert found.gpu_seconds == gpu_seconds


def test_a_plan_that_was_made_after_a_restart_knows_the_rest_alone() -> None:
    """It had used 60 seconds for 60 lines; 20 of the other 40 have taken 20 more."""
    run = Run(answered=80, ended=0.5, done=Done.by_work(0.5), gpu_seconds=80.0)
    run.before = Before(Tally(completed=60, output_tokens=1200), 60.0)
    found = outlook({CHATS: Price(of_byte=1.0, of_work=5.0)}, run).of(record())
    assert found is not None
    assert found.gpu_seconds == pytest.approx(100)


def test_no_end_is_forecast_for_another_century() -> None:
    caps = 100 * (1 << 20)
    run = Run(answered=20, output_caps=caps, done=Done.by_lines(0.2))
    found = outlook({CHATS: Price(1.0, 1000.0, ((1 << 20, 1.0),))}, run)
    assert found.of(record()) is None


def test_one_beside_another_has_to_wait_for_a_part_of_it() -> None:
    """It costs 100 seconds, the other 40: both have ended after 140, the other after 80."""
    both = outlook(COST, Run("a"), Run("b", input_bytes=40))
    found = both.of(record()), both.of(record(id="b"))
    ends = [one.ends_at - time.time() for one in found if one is not None]
    assert ends == pytest.approx([140, 80], abs=2)


def test_one_of_higher_priority_goes_first() -> None:
    both = outlook(COST, Run("a"), Run("b", input_bytes=40, priority=1))
    first, second = both.of(record(id="b")), both.of(record())
    assert first is not None
    assert second is not None
    assert first.ends_at - time.time() == pytest.approx(40, abs=2)
    assert second.starts_at - time.time() == pytest.approx(40, abs=2)
    assert outlook(COST, Run("a", waits=True)).of(record()) is None


@pytest.mark.anyio
async def test_caps_of_a_batch_are_gone_by_from_its_16th_answer(directory: Path) -> None:
    """Answers of two tokens: a quarter of 8 was used before, so of 16 it will be four."""
    script = Held()
    engine = ScriptedEngine(script)
    engine.work = work  # type: ignore[method-assign]
    async with serve(directory, engine) as service:

        async def gpu_seconds(batch_id: str) -> float:
            answer = await service.http.get(f"/v1/batches/{batch_id}")
            return float(answer.json()["forecast"]["gpu_seconds"])

        lines = [capped(f"a{number}", 8) for number in range(40)]
        first = await service.submit(lines)
        await asyncio.sleep(2.5)
        script.let_end(40)
        await service.finish(first.id)
        used = (await service.http.get(f"/v1/batches/{first.id}")).json()["gpu_seconds"]
        lines = [capped(f"b{number}", 16) for number in range(40)]
        second = await service.submit(lines)
        before = await gpu_seconds(second.id)
        assert before == pytest.approx(used, rel=0.1), "by its bytes"
        script.let_end(16)
        while (await service.client.batches.retrieve(second.id)).request_counts.completed < 16:
            await asyncio.sleep(0.05)
        assert await gpu_seconds(second.id) == pytest.approx(2 * used, rel=0.1)
        script.let_end(40)
        await service.finish(second.id)


@pytest.mark.anyio
async def test_a_cap_that_no_answer_has_is_a_line_of_its_own(directory: Path) -> None:
    caps: list[Any] = [1e300, 2**63 - 1, 2**64 - 1, -1, 2**31]
    async with serve(directory, ScriptedEngine()) as service:
        lines = [capped(f"a{number}", cap) for number, cap in enumerate(caps)]
        batch = await service.submit([*lines, capped("b", 4)])
        ended = await service.finish(batch.id)
        assert (ended.status, ended.request_counts.total) == ("completed", len(caps) + 1)
