"""The pace holds the ratio of the remaining work and stays within its bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.policy.pace import (
    BalancePace,
    FixedPace,
    Pace,
    PrefillBudget,
    RatioPace,
    SavedPrefill,
    SpreadPace,
    StepLoad,
    compute_scarcity,
)

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))
PACE = RatioPace(COST, kv_slots=400_000, max_tokens=8192)


def test_the_step_gets_the_ratio_of_the_rest() -> None:
    load = StepLoad(running=100, kv_tokens=300_000)
    rest = RemainingWork(compute=1400.0, memory=1000.0)
    tokens = PACE.budget(load, rest).compute_side
    assert 0 < tokens < PACE.max_tokens
    weights = float(COST.weights_seconds(100))
    compute = float(COST.decode_compute_seconds(100, 300_000) + tokens * COST.prefill_seconds(1.0))
    memory = float(COST.kv_read_seconds(300_000)) + weights
    rest_memory = 1000.0 * (1 + weights / float(COST.kv_read_seconds(400_000)))
    assert compute / memory == pytest.approx(1400.0 / rest_memory, rel=0.01)


def test_a_memory_bound_rest_leaves_idle_compute_to_its_own_end() -> None:
    budget = PACE.budget(StepLoad(50, 200_000), RemainingWork(compute=100.0, memory=1000.0))
    assert budget.memory_side > budget.compute_side


def test_a_step_hides_its_traffic_or_takes_its_share_of_more_compute() -> None:
    pace, load = BalancePace(COST, 400_000, 8192), StepLoad(running=100, kv_tokens=300_000)
    decode, memory = COST.decode_step_seconds(100, 300_000)
    token = COST.prompt_token_seconds()
    hidden = (memory - decode) / token
    for rest in (RemainingWork(1.0, 1000.0), RemainingWork(900.0, 1000.0)):
        assert pace.budget(load, rest).compute_side == pytest.approx(hidden, abs=1)
    rest = RemainingWork(2000.0, 1000.0)
    scarcity = compute_scarcity(COST, 400_000, 100, rest)
    assert 1.2 < scarcity < 2.0  # the weights that the traffic brings along are in it
    share = (scarcity * memory - decode) / token
    assert pace.budget(load, rest).compute_side == pytest.approx(share, abs=1)
    assert pace.budget(load, RemainingWork(1.0, 0.0)).compute_side == 8192


def test_nothing_running_or_nothing_to_read_means_full_speed() -> None:
    assert PACE.budget(StepLoad(0, 0), RemainingWork(1.0, 1e9)).compute_side == PACE.max_tokens
    assert PACE.budget(StepLoad(3, 10), RemainingWork(1.0, 0.0)).compute_side == PACE.max_tokens


@pytest.mark.parametrize("pace", [PACE, BalancePace(COST, 400_000, 8192), SpreadPace(COST, 8192)])
@given(
    running=st.integers(0, 5000),
    kv=st.floats(0, 1e7),
    compute=st.floats(0, allow_nan=False),
    memory=st.floats(0, allow_nan=False),
)
def test_the_budget_stays_within_bounds(
    pace: Pace, running: int, kv: float, compute: float, memory: float
) -> None:
    budget = pace.budget(StepLoad(running, kv), RemainingWork(compute, memory))
    assert 0 <= budget.compute_side <= budget.memory_side <= 8192
    if running == 0:
        assert budget.compute_side > 0


def test_a_fixed_pace_counts_the_running_requests() -> None:
    rest = RemainingWork(1.0, 1.0)
    assert FixedPace(512).budget(StepLoad(100, 0), rest).compute_side == 412
    assert FixedPace(64).budget(StepLoad(100, 0), rest).compute_side == 1


def test_a_budget_is_cut_on_either_side() -> None:
    assert PrefillBudget(100, 300).at_most(200) == PrefillBudget(100, 200)
    assert PrefillBudget(100, 300).at_most(None) == PrefillBudget(100, 300)


def test_budgets_too_small_for_a_step_are_saved_up_and_no_others() -> None:
    saved = SavedPrefill(min_tokens=64)
    assert [saved.add(PrefillBudget(30, 30)).compute_side for _ in range(3)] == [0, 0, 64]
    saved.spend(64)
    assert saved.latest == PrefillBudget(30, 30)
    assert saved.add(PrefillBudget(100, 300)) == PrefillBudget(100, 300)
    assert saved.add(PrefillBudget(100, 300)) == PrefillBudget(100, 300)  # not 200
