"""What prompt tokens cost beside their matrix products, and that the pace allows for it."""

from __future__ import annotations

import pytest

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.prompt_cost import PromptCost
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.cost.step_seconds import RateSteps
from sglang.srt.blendserve.policy.full_step import FullSteps
from sglang.srt.blendserve.policy.marginal_pace import MarginalPace
from sglang.srt.blendserve.policy.pace import StepLoad

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))


def test_the_factor_is_that_of_the_cost_model() -> None:
    prompts = PromptCost(COST.model, kept=0.97)
    assert prompts.factor == 1.0
    prompts.note(3000, 4000, ends=False)
    prompts.note(500, 20_000, ends=True)
    head = 2 * COST.model.head_parameters / COST.device.peak_flops
    whole = COST.prefill_seconds(3000, 4000) + COST.prefill_seconds(500, 20_000) + head
    assert prompts.factor == pytest.approx(float(whole) / (3500 * COST.prompt_token_seconds()))
    assert prompts.factor > 1.1


def test_it_follows_the_prompts_of_the_last_dozens_of_steps() -> None:
    prompts = PromptCost(COST.model, kept=0.97)
    for _ in range(300):
        prompts.note(1000, 20_000, ends=False)
        prompts.end_step()
    dear = prompts.factor
    for _ in range(300):
        prompts.note(1000, 0, ends=False)
        prompts.end_step()
    cheap = PromptCost(COST.model, kept=0.97)
    cheap.note(1000, 0, ends=False)
    assert prompts.factor == pytest.approx(cheap.factor, rel=0.01)
    assert dear > 1.2 * prompts.factor


def test_a_step_computes_fewer_of_dearer_tokens() -> None:
    pace = MarginalPace(FullSteps(COST, RateSteps(COST), kv_slots=400_000, max_tokens=8192))
    rest = RemainingWork(20.0, 10.0)
    plain = [pace.budget(StepLoad(100, 300_000), rest).compute_side for _ in range(50)]
    dear = [pace.budget(StepLoad(100, 300_000, 1.25), rest).compute_side for _ in range(50)]
    assert sum(dear) == pytest.approx(sum(plain) / 1.25, rel=0.03)
