"""Completion windows: who gets the next slot, how many slots there are, and that nobody starves."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.answering.rate_meter import RateMeter
from sglang.srt.blendserve.answering.slots import (
    FEWEST_SLOTS,
    FIRST_SLOTS,
    TURNAROUND,
    Demand,
    SlotPool,
    at_risk,
    first_served,
    next_in_line,
    slot_count,
)
from sglang.srt.blendserve.server.parameters import window_seconds
from sglang.srt.blendserve.store.tally import Tally

HOUR = 3600.0

demands = st.builds(
    Demand,
    remaining=st.integers(1, 10**6),
    in_flight=st.integers(0, 10**4),
    seconds_left=st.floats(-10, 7 * 24 * HOUR),
    priority=st.integers(-2, 2),
)


def test_windows() -> None:
    assert window_seconds("1h") == 3600
    assert window_seconds("24h") == window_seconds("1d") == 86400
    assert window_seconds("168h") == window_seconds("7d")
    for bad in (
        "",
        "h",
        "0h",
        "1",
        "1m",
        "169h",
        "8d",
        "01h",
        "1h ",
        "\uff11h",
        "-1h",
        "1.5h",
        "24H",
    ):
        with pytest.raises(ValueError, match="from '1h' to '7d'"):
            window_seconds(bad)


def test_a_batch_at_risk_goes_first_the_earliest_before_the_others() -> None:
    week = Demand(remaining=50_000, in_flight=0, seconds_left=160 * HOUR)
    tight = Demand(remaining=5_000, in_flight=0, seconds_left=HOUR)
    tighter = Demand(remaining=500, in_flight=0, seconds_left=HOUR / 10)
    assert not at_risk(week, 0, rate=2.0)
    assert at_risk(tight, 0, rate=2.0)
    assert next_in_line([week, tight], 0, rate=2.0) == 1
    assert next_in_line([week, tight, tighter], 0, rate=2.0) == 2


def test_work_of_others_in_the_engine_counts_as_a_risk() -> None:
    hour = Demand(remaining=100, in_flight=0, seconds_left=HOUR)
    assert not at_risk(hour, 0, rate=1.0)
    assert at_risk(hour, 2000, rate=1.0)


def test_otherwise_slots_are_shared_by_the_rate_each_needs() -> None:
    """Given slots one by one, batches hold them in proportion to remaining / seconds left."""
    needed = [(6000, 10 * HOUR), (6000, 20 * HOUR), (1000, 10 * HOUR)]
    held = [0, 0, 0]
    for _ in range(600):
        waiting = [
            Demand(remaining, held[i], seconds) for i, (remaining, seconds) in enumerate(needed)
        ]
        held[next_in_line(waiting, sum(held), rate=1e6)] += 1
    assert held == pytest.approx([360, 180, 60], rel=0.02)  # as 1/6, 1/12 and 1/36 a second


@given(st.lists(demands, min_size=1, max_size=8), st.none() | st.floats(0.01, 1e4))
def test_the_choice_is_one_of_those_at_risk_if_there_are_any(
    waiting: list[Demand], rate: float | None
) -> None:
    in_flight = sum(demand.in_flight for demand in waiting)
    chosen = next_in_line(waiting, in_flight, rate)
    risky = [demand for demand in waiting if at_risk(demand, in_flight, rate)]
    if risky:
        assert waiting[chosen].seconds_left == min(demand.seconds_left for demand in risky)
    else:
        assert not at_risk(waiting[chosen], in_flight, rate)


@given(st.none() | st.floats(0, 1e6), st.integers(1, 10**6))
def test_slots_hold_what_is_done_in_a_turnaround(rate: float | None, most: int) -> None:
    number = slot_count(rate, most)
    assert 1 <= number <= most
    if rate is None:
        assert number == min(FIRST_SLOTS, most)
    elif FEWEST_SLOTS <= rate * TURNAROUND <= most:
        assert number == int(rate * TURNAROUND)


def test_the_rate_is_that_of_the_last_minute() -> None:
    now = 0.0
    meter = RateMeter(lambda: now)
    assert meter.request_rate() is None
    meter.start()
    for _ in range(30):
        now += 2
        meter.add(Tally(completed=1, input_tokens=10, output_tokens=4))
    assert meter.request_rate() == pytest.approx(0.5)
    assert meter.rates() == pytest.approx((0.5, 5.0, 2.0))
    now += 30
    assert meter.request_rate() == pytest.approx(0.25, abs=0.02)
    now += 100
    assert meter.rates() == (0, 0, 0)
    assert meter.request_rate() is None
    meter.start()
    now += 4
    for _ in range(8):
        meter.add(Tally(failed=1))
    assert meter.request_rate() == pytest.approx(2.0)  # idle time does not count


@pytest.mark.anyio
async def test_bytes_are_bounded_and_the_largest_line_still_gets_in() -> None:
    pool = SlotPool(10, 100, RateMeter())
    demand = Demand(1, 0, HOUR)
    await pool.take(60, lambda: demand)
    second = asyncio.ensure_future(pool.take(60, lambda: demand))
    huge = asyncio.ensure_future(pool.take(1000, lambda: demand))
    await asyncio.sleep(0)
    assert not second.done()
    pool.give_back(60)
    await second
    assert not huge.done()
    pool.give_back(60)
    await huge
    assert pool.in_flight == 1


@pytest.mark.anyio
async def test_a_waiter_that_is_cancelled_loses_no_slot() -> None:
    pool = SlotPool(1, 100, RateMeter())
    demand = Demand(1, 0, HOUR)
    await pool.take(1, lambda: demand)
    waiting = [asyncio.ensure_future(pool.take(1, lambda: demand)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    pool.give_back(1)  # to the second, which is cancelled before it knows
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert waiting[2].exception() is None
    assert pool.in_flight == 1
    pool.give_back(1)
    assert pool.in_flight == 0


def test_a_lower_priority_waits_unless_it_would_be_late() -> None:
    high = Demand(remaining=5_000, in_flight=500, seconds_left=20 * HOUR, priority=1)
    low = Demand(remaining=5_000, in_flight=0, seconds_left=20 * HOUR)
    late = Demand(remaining=50_000, in_flight=0, seconds_left=600)
    for rate in (10.0, None):
        assert first_served([low, high], 500, rate) == [1]
        assert first_served([low, low], 500, rate) == [0, 1]
        assert first_served([late, high, low], 500, rate) == [0, 1]


@pytest.mark.anyio
async def test_a_slot_is_held_back_for_a_higher_priority_between_two_of_its_lines() -> None:
    pool = SlotPool(2, None, RateMeter())
    wants = True
    high = Demand(remaining=9, in_flight=2, seconds_left=HOUR * 20, priority=5)
    low = Demand(remaining=9, in_flight=0, seconds_left=HOUR * 20)
    pool.register("high", lambda: wants, lambda: high)
    for _ in range(2):
        await pool.take(1, lambda: high)
    waiting = asyncio.ensure_future(pool.take(1, lambda: low))
    await asyncio.sleep(0)
    pool.give_back(1)
    pool.give_back(1)
    await asyncio.sleep(0)
    assert not waiting.done()
    await pool.take(1, lambda: high)  # it gets the one, and the other is still kept for it
    assert not waiting.done()
    wants = False
    pool.look_again()
    await asyncio.wait_for(waiting, 1)
    pool.forget("high")
    assert pool.in_flight == 2


@pytest.mark.anyio
async def test_who_stops_wanting_holds_nothing_back() -> None:
    pool = SlotPool(1, None, RateMeter())
    high = Demand(remaining=9, in_flight=0, seconds_left=HOUR * 20, priority=5)
    low = Demand(remaining=9, in_flight=0, seconds_left=HOUR * 20)
    pool.register("high", lambda: True, lambda: high)
    waiting = asyncio.ensure_future(pool.take(1, lambda: low))
    await asyncio.sleep(0)
    assert not waiting.done()
    pool.forget("high")
    await asyncio.wait_for(waiting, 1)
