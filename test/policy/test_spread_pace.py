"""The pace without overlap: prefill and decode end together, and weights are always hidden."""

import pytest

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.policy.pace import SpreadPace, StepLoad

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))
PACE = SpreadPace(COST, max_tokens=8192)


def test_a_step_gets_its_part_of_the_prefill_that_is_left() -> None:
    load = StepLoad(running=40, kv_tokens=400_000)
    part = float(COST.kv_read_seconds(400_000)) / 1000.0
    tokens = PACE.budget(load, RemainingWork(compute=1400.0, memory=1000.0)).compute_side
    compute = tokens * COST.prompt_token_seconds()
    compute += float(COST.decode_compute_seconds(40, 400_000))
    assert compute == pytest.approx(part * 1400.0, rel=0.01)


def test_few_decodes_get_enough_tokens_to_hide_the_weights() -> None:
    load = StepLoad(running=5, kv_tokens=50_000)
    tokens = PACE.budget(load, RemainingWork(compute=1.0, memory=1000.0)).compute_side
    products = tokens * COST.prompt_token_seconds() + float(COST.decode_compute_seconds(5))
    weights = float(COST.weights_seconds(5))
    assert weights <= products <= 1.01 * weights


def test_many_decodes_hide_the_weights_themselves() -> None:
    load = StepLoad(running=400, kv_tokens=400_000)
    assert PACE.budget(load, RemainingWork(compute=1.0, memory=1000.0)).compute_side == 0


def test_without_decodes_to_spread_it_over_prefill_goes_at_full_speed() -> None:
    for load, rest in (
        (StepLoad(0, 0), RemainingWork(1.0, 1e9)),
        (StepLoad(3, 100), RemainingWork(1.0, 0.0)),
        (StepLoad(3, 100), RemainingWork(float("inf"), 1.0)),
    ):
        assert PACE.budget(load, rest).compute_side == PACE.max_tokens
