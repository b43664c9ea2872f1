"""What all paces share: budgets, what is saved up of them, how scarce compute is."""

import pytest

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.policy.pace import (
    FixedPace,
    PrefillBudget,
    SavedPrefill,
    StepLoad,
    compute_scarcity,
)

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))


def test_scarce_compute_is_that_beyond_all_traffic_and_its_weights() -> None:
    rest = RemainingWork(2000.0, 1000.0)
    weights = float(COST.weights_seconds(100)) / float(COST.kv_read_seconds(400_000))
    found = compute_scarcity(COST, 400_000, 100, rest)
    assert found == pytest.approx(2.0 / (1 + weights))
    assert compute_scarcity(COST, 400_000, 100, RemainingWork(1.0, 0.0)) == float("inf")


def test_a_fixed_pace_counts_the_running_requests() -> None:
    rest = RemainingWork(1.0, 1.0)
    assert FixedPace(512).budget(StepLoad(100, 0), rest).compute_side == 412
    assert FixedPace(64).budget(StepLoad(100, 0), rest).compute_side == 1


def test_a_budget_is_cut_on_either_side() -> None:
    assert PrefillBudget(100, 300).at_most(200) == PrefillBudget(100, 200)
    assert PrefillBudget(100, 300).at_most(None) == PrefillBudget(100, 300)


def test_a_step_that_is_meant_to_have_no_prompt_has_none() -> None:
    saved = SavedPrefill(min_tokens=16)
    saved.add(PrefillBudget(464, 464))
    saved.spend(400)
    assert saved.add(PrefillBudget(0, 0)) == PrefillBudget(0, 0)
    assert saved.add(PrefillBudget(464, 464)) == PrefillBudget(464, 464)


def test_budgets_too_small_for_a_step_are_saved_up_and_no_others() -> None:
    saved = SavedPrefill(min_tokens=64)
    assert [saved.add(PrefillBudget(30, 30)).compute_side for _ in range(3)] == [0, 0, 64]
    saved.spend(64)
    assert saved.latest == PrefillBudget(30, 30)
    assert saved.add(PrefillBudget(100, 300)) == PrefillBudget(100, 300)
    assert saved.add(PrefillBudget(100, 300)) == PrefillBudget(100, 300)  # not 200
