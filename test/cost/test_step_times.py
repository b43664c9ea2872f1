"""How long steps take is learned from steps.

pytest test/cost/test_step_times.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import COST

from sglang.srt.blendserve.cost.step_times import StepLoad, StepTimes


class Engine:
    """Runs steps with a fixed cost and a cost of everything in them, seconds."""

    def __init__(self, fixed: float, prefill: float, decode: float, read: float) -> None:
        self.costs = fixed, prefill, decode, read

    def seconds(self, load: StepLoad) -> float:
        fixed, prefill, decode, read = self.costs
        return fixed + prefill * load.prefill + decode * load.decodes + read * load.kv_tokens


def step(tokens: int, decodes: int, context: int = 1000) -> StepLoad:
    return StepLoad(float(COST.prefill_seconds(tokens)), decodes, decodes * context, tokens)


ENGINE = Engine(fixed=0.02, prefill=1.7, decode=2e-4, read=3e-8)


def learned(engine: Engine, steps: int = 300, noise: float = 0.0) -> StepTimes:
    times, rng = StepTimes(COST), np.random.default_rng(0)
    for _ in range(steps):
        load = step(int(rng.integers(0, 2000)), int(rng.integers(0, 200)), int(rng.integers(3000)))
        times.add(load, engine.seconds(load) * float(rng.lognormal(0, noise)))
    return times


@pytest.mark.parametrize("load", [step(0, 1, 50), step(0, 200), step(2000, 0), step(500, 100)])
def test_steps_of_all_kinds_are_foretold(load: StepLoad) -> None:
    assert learned(ENGINE).seconds(load) == pytest.approx(ENGINE.seconds(load), rel=0.05)
    assert learned(ENGINE, noise=0.2).seconds(load) == pytest.approx(ENGINE.seconds(load), rel=0.15)


def test_what_small_steps_take_is_remembered_while_thousands_of_full_ones_run() -> None:
    times = learned(ENGINE)
    for _ in range(3000):
        times.add(step(2000, 200), ENGINE.seconds(step(2000, 200)))
    small = step(0, 1, 50)
    assert times.seconds(small) == pytest.approx(ENGINE.seconds(small), rel=0.1)


def test_before_any_step_the_cost_model_says_it() -> None:
    times = StepTimes(COST)
    assert times.seconds(step(1000, 0)) == pytest.approx(
        float(COST.prefill_seconds(1000) + COST.weights_seconds(1))
    )


def test_a_pause_is_no_step_but_a_slower_engine_is_believed() -> None:
    times = learned(ENGINE)
    before = times.seconds(step(0, 50))
    times.add(step(0, 50), 60.0)
    assert times.seconds(step(0, 50)) == pytest.approx(before, rel=0.05)
    slow = Engine(*(10 * cost for cost in ENGINE.costs))
    for _ in range(200):
        times.add(step(0, 50), slow.seconds(step(0, 50)))
    assert times.seconds(step(0, 50)) == pytest.approx(slow.seconds(step(0, 50)), rel=0.3)


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 300), st.floats(1e-6, 100)), max_size=40
    )
)
def test_no_step_is_foretold_to_take_negative_time(steps: list[tuple[int, int, float]]) -> None:
    times = StepTimes(COST)
    for tokens, decodes, seconds in steps:
        times.add(step(tokens, decodes), seconds)
    assert (times.factors >= 0).all()
    assert np.isfinite(times.factors).all()


def test_what_fits_in_a_time_takes_that_time() -> None:
    times = learned(ENGINE)
    tokens = times.prefill_tokens(0.1, context=0)
    added = times.seconds(step(tokens, 0)) - times.seconds(step(0, 0))
    assert added == pytest.approx(0.1, rel=0.05)
    assert times.prefill_tokens(0.1, context=50_000) < tokens
    assert times.prefill_tokens(-1.0, context=0) == 0


def test_a_kind_of_steps_may_be_slower_than_the_sum_of_its_parts() -> None:
    times = learned(ENGINE)
    for _ in range(20):
        times.add(step(0, 4), 0.06)
        times.add(step(0, 1), ENGINE.seconds(step(0, 1)))
        times.add(step(0, 100), ENGINE.seconds(step(0, 100)))
    assert times.seconds(step(0, 4)) == pytest.approx(0.06, rel=0.1)
    for other in (step(0, 1), step(0, 100)):
        assert times.seconds(other) == pytest.approx(ENGINE.seconds(other), rel=0.1)


def test_a_first_fit_leaves_no_step_twice_as_slow() -> None:
    slow = Engine(*(30 * cost for cost in ENGINE.costs))
    times = StepTimes(COST)
    times.add(step(0, 1), slow.seconds(step(0, 1)))
    for decodes in range(2, 40):
        times.add(step(0, decodes), slow.seconds(step(0, decodes)))
    assert times.seconds(step(0, 1)) == pytest.approx(slow.seconds(step(0, 1)), rel=0.05)
