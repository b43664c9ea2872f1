"""The correction of the device's constants: it finds what steps cost, and no input unhinges it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.cost.step_fit import MOST, StepFit
from sglang.srt.blendserve.policy.pace import BalancePace, StepLoad


def steps(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Compute and memory seconds of steps from all decode to nearly all prefill."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.001, 0.04, count), rng.uniform(0.01, 0.03, count)


@pytest.mark.parametrize(("a", "b", "fixed"), [(1.6, 1.2, 0.0), (1.3, 2.4, 0.003), (1, 1, 0.01)])
def test_finds_what_each_kind_of_work_takes(a: float, b: float, fixed: float) -> None:
    fit = StepFit()
    noise = np.random.default_rng(1).normal(1, 0.05, 600)
    for c, m, n in zip(*steps(600), noise, strict=True):
        fit.add(c, m, (a * c + b * m + fixed) * n)
    compute, memory = fit.factors()
    assert compute / memory == pytest.approx(a / b, rel=0.1)


def test_follows_a_device_that_changes() -> None:
    fit = StepFit()
    for a in (1.0, 2.0):
        for c, m in zip(*steps(3000), strict=True):
            fit.add(c, m, a * c + m)
    compute, memory = fit.factors()
    assert compute / memory == pytest.approx(2.0, rel=0.1)


def test_steps_of_one_ratio_change_no_pace() -> None:
    fit = StepFit()
    for c, _ in zip(*steps(500), strict=True):
        fit.add(c, 2 * c, 5 * c)
    compute, memory = fit.factors()
    assert compute / memory == pytest.approx(1.0, rel=0.05)


def test_nothing_is_corrected_from_a_few_steps() -> None:
    fit = StepFit()
    for c, m in zip(*steps(20), strict=True):
        fit.add(c, m, 9 * c + m)
    assert fit.factors() == (1.0, 1.0)


def test_a_pause_is_not_a_step() -> None:
    fit = StepFit()
    for number, (c, m) in enumerate(zip(*steps(600), strict=True)):
        fit.add(c, m, 1.5 * c + m + (3.0 if number % 50 == 49 else 0.0))
    compute, memory = fit.factors()
    assert compute / memory == pytest.approx(1.5, rel=0.15)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(allow_nan=True, min_value=None, max_value=None)] * 3), max_size=20
    ),
    st.lists(st.tuples(*[st.floats(1e-9, 1e9)] * 3), min_size=1, max_size=30),
)
def test_factors_stay_positive_and_near_each_other(
    odd: list[tuple[float, float, float]], wild: list[tuple[float, float, float]]
) -> None:
    fit = StepFit()
    for step in odd + wild * 5:
        fit.add(*step)
    compute, memory = fit.factors()
    assert compute > 0
    assert memory > 0
    assert 1 / MOST / 1.001 <= compute / memory <= MOST * 1.001


def test_slower_compute_means_fewer_prompt_tokens_beside_the_same_decodes() -> None:
    cost = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("H200"))
    load, rest = StepLoad(200, 300_000), RemainingWork(1.0, 1.0)
    tokens = [
        BalancePace(cost.at_rates(a, b), 400_000, 8192).budget(load, rest).compute_side
        for a, b in [(1, 1), (1.5, 1), (1.5, 1.5), (3, 1)]
    ]
    assert tokens[0] > tokens[1] > tokens[3]
    assert tokens[2] == pytest.approx(tokens[0], abs=1)
