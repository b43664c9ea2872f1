"""What more memory is worth to an engine: steps with a fixed time, steps without, flat parts.

pytest test/policy/test_full_step.py
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.cost.step_seconds import StepSeconds, stock_steps
from sglang.srt.blendserve.policy.full_step import FULL, FullStep, FullSteps
from sglang.srt.blendserve.policy.pace import StepLoad

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))
SLOTS = 400_000
TOKEN = COST.prompt_token_seconds()
BLEND = FullStep(2000.0, 100.0, FULL * SLOTS)


def full_steps(steps: StepSeconds, max_tokens: int = 8192) -> FullSteps:
    return FullSteps(COST, steps, SLOTS, max_tokens)


def straight(fixed: float) -> StepSeconds:
    """``fixed`` seconds, and for every prompt token and 20 KV tokens as long as a token takes."""
    return lambda prompts, decodes, kv: fixed + TOKEN * (prompts + kv / 20)


def test_a_full_step_holds_what_is_left_in_its_proportion() -> None:
    load = StepLoad(running=50, kv_tokens=190_000)
    steps = 1000 * float(COST.kv_read_seconds(FULL * SLOTS))
    decodes = float(COST.decode_compute_seconds(50, 190_000))
    rest = RemainingWork(1000 * (600 * TOKEN + decodes), steps)
    full = full_steps(straight(0.0)).of(load, rest)
    assert full == pytest.approx((600, 100, FULL * SLOTS))


def test_all_memory_is_worth_having_where_steps_share_a_fixed_time() -> None:
    assert full_steps(straight(1.0)).enough(BLEND) == 1
    assert full_steps(straight(1.0)).slot_price(BLEND) > 0


def test_none_is_where_a_token_costs_the_same_in_any_step() -> None:
    assert full_steps(straight(0.0)).enough(BLEND) == pytest.approx(1 / 16, rel=0.05)
    assert full_steps(straight(0.0)).slot_price(BLEND) == pytest.approx(0, abs=1e-6)


def test_enough_is_where_larger_steps_stop_being_cheaper() -> None:
    """The weights are loaded in the time of 1,000 tokens: about half of the step hides that."""

    def steps(prompts: int, decodes: int, kv: float) -> float:
        return max((prompts + decodes) / 1000, 1.0)

    assert 0.4 < full_steps(steps).enough(BLEND) < 0.65


def test_a_chunk_that_is_filled_has_no_use_for_more_memory() -> None:
    large = FullStep(50_000.0, 100.0, FULL * SLOTS)
    assert full_steps(straight(1.0), 2048).enough(large) == 1
    assert full_steps(straight(1.0), 2048).slot_price(large) == 0


@pytest.mark.parametrize("fixed", [0.001, 0.01, 0.1])
def test_a_slot_earns_its_part_of_the_time_that_steps_share(fixed: float) -> None:
    """A step of F fixed seconds and V that grow with it: a part of memory is worth F / (F + V) of
    that part of the step, so a slot F over the slots, and a token costs `TOKEN` again."""
    price = full_steps(straight(fixed)).slot_price(BLEND)
    assert price == pytest.approx(fixed / (FULL * SLOTS) / TOKEN, rel=0.03)


def test_what_is_computed_alone_costs_a_step_of_its_own() -> None:
    """Its decodes wait for the fixed second, too."""
    mixed = full_steps(straight(1.0))
    alone = replace(mixed, alone=True)
    dearer = (1.0 / alone.max_tokens + TOKEN) / TOKEN
    assert mixed.slot_price(BLEND) == pytest.approx(dearer * alone.slot_price(BLEND), rel=0.03)


@pytest.mark.parametrize("tokens", [0.0, 64.0, 1000.0])
def test_one_decode_more_moves_no_price_far(tokens: float) -> None:
    """Tiles of kernels are jumps of a step's time, and no reason to take memory for worthless."""
    engine = full_steps(stock_steps(COST))
    prices = [engine.slot_price(FullStep(tokens, n, FULL * SLOTS)) for n in range(40, 400)]
    for one, other in pairwise(prices):
        assert abs(one - other) < 0.2 * max(prices)


@given(
    st.floats(-10_000, 50_000),
    st.floats(0, 4000),
    st.sampled_from(["A100-80G", "H100", "H200"]),
    st.sampled_from([400, 6000, SLOTS]),
)
def test_a_price_is_a_finite_number_that_is_not_negative(
    tokens: float, decodes: float, device: str, slots: int
) -> None:
    cost = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named(device))
    engine = FullSteps(cost, stock_steps(cost), slots, 8192)
    full = FullStep(tokens, decodes, FULL * slots)
    assert 0 <= engine.slot_price(full) < 10
    assert 0 < engine.enough(full) <= 1
