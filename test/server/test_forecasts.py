"""Forecasts of batches: what a price is, and what it is a price of.

pytest test/server/test_forecasts.py
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import ScriptedEngine

from sglang.srt.blendserve.answering.rate_meter import RateMeter
from sglang.srt.blendserve.server.forecasts import Forecasts, Price, Prices, prices
from sglang.srt.blendserve.server.gpu_time import Done, GpuTime
from sglang.srt.blendserve.store.batch_table import EndedBatch
from sglang.srt.blendserve.store.tally import Tally

CHATS, WORDS = "/v1/chat/completions", "/v1/completions"


def work(tally: Tally) -> float | None:
    """Seconds of predicted work: a hundredth of a second for each token of the output."""
    return tally.output_tokens / 100


def ended(
    endpoint: str, gpu_seconds: float, input_bytes: int, tokens: int, caps: int | None = None
) -> EndedBatch:
    return EndedBatch(endpoint, gpu_seconds, input_bytes, Tally(output_tokens=tokens), caps)


def test_what_an_endpoint_s_batches_have_cost() -> None:
    before = [
        ended(CHATS, 10.0, 100, 2000, caps=8000),
        ended(CHATS, 30.0, 300, 2000),  # a line of it had no cap
        ended(WORDS, 1.0, 5, 0),
    ]
    found = prices(before, work)
    assert found == {CHATS: Price(0.1, 1.0, 0.25), WORDS: Price(0.2)}
    assert prices(before, lambda tally: None)[CHATS] == Price(0.1, None, 0.25)
    assert prices([], work) == {}


class Run(SimpleNamespace):
    """An open batch of which ``answered`` of 100 lines have ended."""

    def __init__(self, name: str = "a", answered: int = 0, **more: Any) -> None:
        usual: dict[str, Any] = {
            "id": name,
            "endpoint": CHATS,
            "waits": False,
            "priority": 0,
            "begun": answered > 0,
            "tally": Tally(completed=answered),
            "lines": 100,
            "lines_left": 100 - answered,
            "done": Done.by_work(answered / 100),
            "work": 50.0,
            "output_caps": None,
            "input_bytes": 100,
            "gpu_seconds": 0.0,
            "seconds_left": None,
        }
        super().__init__(**usual | more)


def record(**more: Any) -> Any:
    usual = {"id": "a", "in_progress_at": int(time.time()), "expires_at": int(time.time()) + 9000}
    return SimpleNamespace(**usual | more)


def forecasts(*runs: Run) -> Forecasts:
    gpu_time = GpuTime(lambda: 1, lambda tally: 1.0)
    there: Any = {run.id: run for run in runs}
    engine = ScriptedEngine()
    engine.work = work  # type: ignore[method-assign]
    return Forecasts(there, engine, gpu_time, RateMeter())


COST: Prices = {CHATS: Price(of_byte=1.0, of_work=4.0)}


@pytest.mark.parametrize(("answered", "gpu_seconds"), [(0, 100.0), (15, 100.0), (16, 200.0)])
def test_predicted_work_counts_once_lengths_have_been_seen(
    answered: int, gpu_seconds: float
) -> None:
    """100 bytes at 1 second each, or 50 seconds of work at 4."""
    found = forecasts(Run(answered=answered)).of(record(), COST)
    assert found is not None
    assert found.gpu_seconds == gpu_seconds
    assert abs(found.ends_at - time.time() - gpu_seconds) <= 2


def test_bytes_count_where_no_work_is_known() -> None:
    for run, cost in (
        (Run(answered=50, work=None), COST),
        (Run(answered=50), {CHATS: Price(of_byte=1.0)}),
    ):
        found = forecasts(run).of(record(), cost)
        assert found is not None
        assert found.gpu_seconds == 100
    assert forecasts(Run()).of(record(), {}) is None


@pytest.mark.parametrize(("output_caps", "gpu_seconds"), [(4000, 40.0), (None, 100.0)])
def test_caps_say_how_long_outputs_will_be_where_there_is_no_plan(
    output_caps: int | None, gpu_seconds: float
) -> None:
    """A quarter of the 4,000 tokens that are allowed, a hundredth of a second of work for each."""
    run = Run(answered=20, work=None, output_caps=output_caps)
    run.done = Done.by_lines(0.2)
    found = forecasts(run).of(record(), {CHATS: Price(1.0, 4.0, 0.25)})
    assert found is not None
    assert found.gpu_seconds == gpu_seconds


def test_one_beside_another_has_to_wait_for_a_part_of_it() -> None:
    """It costs 100 seconds, the other 40: both have ended after 140, the other after 80."""
    both = forecasts(Run("a"), Run("b", input_bytes=40))
    found = both.of(record(), COST), both.of(record(id="b"), COST)
    ends = [one.ends_at - time.time() for one in found if one is not None]
    assert ends == pytest.approx([140, 80], abs=2)


def test_one_of_higher_priority_goes_first() -> None:
    both = forecasts(Run("a"), Run("b", input_bytes=40, priority=1))
    first, second = both.of(record(id="b"), COST), both.of(record(), COST)
    assert first is not None
    assert second is not None
    assert first.ends_at - time.time() == pytest.approx(40, abs=2)
    assert second.starts_at - time.time() == pytest.approx(40, abs=2)
    assert forecasts(Run("a", waits=True)).of(record(), COST) is None
