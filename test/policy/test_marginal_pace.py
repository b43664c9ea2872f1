"""Prompt tokens go where a step grows least: flat parts, jumps of tiles, straight lines.

pytest test/policy/test_marginal_pace.py
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.cost.step_seconds import (
    KernelSteps,
    RateSteps,
    StepSeconds,
    stock_steps,
)
from sglang.srt.blendserve.policy.full_step import FullStep, FullSteps
from sglang.srt.blendserve.policy.marginal_pace import MarginalPace
from sglang.srt.blendserve.policy.pace import StepLoad

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))
SLOTS, MOST = 400_000, 8192
LOAD = StepLoad(running=48, kv_tokens=300_000)


def pace_of(steps: StepSeconds) -> MarginalPace:
    return MarginalPace(FullSteps(COST, steps, SLOTS, MOST))


def rest_of(tokens: float, load: StepLoad = LOAD, steps: float = 1000) -> RemainingWork:
    """Work of which ``tokens`` prompt tokens fall to a step beside ``load``."""
    compute = tokens * COST.prompt_token_seconds()
    compute += float(COST.decode_compute_seconds(load.running, load.kv_tokens))
    return RemainingWork(compute * steps, steps * float(COST.kv_read_seconds(0.95 * SLOTS)))


def tiles(prompt_tokens: int, decodes: int, _: float) -> float:
    """Products of whole tiles of 256 tokens; decodes alone need a quarter of a tile."""
    tokens = prompt_tokens + decodes
    return 10.0 + (-(-tokens // 256) if prompt_tokens else 0.25)


def free_up_to_knee(prompt_tokens: int, decodes: int, _: float) -> float:
    return max(10.0, (prompt_tokens + decodes) / 50)


def straight(prompt_tokens: int, decodes: int, _: float) -> float:
    return 10.0 + prompt_tokens + decodes


def budgets(steps: StepSeconds, tokens: float, count: int, load: StepLoad = LOAD) -> list[int]:
    pace, rest = pace_of(steps), rest_of(tokens, load)
    return [pace.budget(load, rest).compute_side for _ in range(count)]


@pytest.mark.parametrize("running", [33, 48, 49, 250, 255])
def test_a_step_never_begins_a_tile_that_it_does_not_fill(running: int) -> None:
    load = StepLoad(running, 300_000)
    for wanted in (200, 300, 600, 1000):
        for tokens in budgets(tiles, wanted, 50, load):
            assert tokens == 0 or (tokens + running) % 256 == 0


def test_what_falls_between_two_sizes_is_computed_in_turn() -> None:
    given = budgets(tiles, 300, 400)
    assert set(given) == {256 - 48, 512 - 48}
    assert sum(given) / len(given) == pytest.approx(300, rel=0.01)


@pytest.mark.parametrize("running", [33, 48, 49])
def test_what_is_free_is_taken_at_once(running: int) -> None:
    load = StepLoad(running, 300_000)
    assert set(budgets(free_up_to_knee, 20, 50, load)) == {480 - running}  # 500, in sizes of 32


def test_a_step_is_no_larger_than_is_worth_it() -> None:
    """Beyond the knee a token costs the same in any step: half of the memory does."""
    assert sum(budgets(free_up_to_knee, 1000, 64)) == pytest.approx(64 * 500, rel=0.1)


def test_where_every_token_costs_the_same_the_average_is_taken() -> None:
    given = budgets(straight, 700, 64)
    assert max(given) - min(given) <= 32
    assert sum(given) / len(given) == pytest.approx(700, rel=0.02)


@pytest.mark.parametrize("most", [16, 64, 512, 2048])
@pytest.mark.parametrize("running", [33, 48, 49])
def test_small_chunks_are_filled_where_more_is_left_than_they_hold(most: int, running: int) -> None:
    pace, load = MarginalPace(FullSteps(COST, KERNELS, SLOTS, most)), StepLoad(running, 300_000)
    rest = rest_of(20_000, load)
    assert {pace.budget(load, rest).compute_side for _ in range(50)} == {most}


def bent(prompt_tokens: int, *_: float) -> float:
    """The first tile is a little dearer than the hull, and cheaper than anything below it."""
    return (
        1.0
        if not prompt_tokens
        else 6.0
        if prompt_tokens <= 208
        else straight_from(464)(prompt_tokens)
    )


def straight_from(tile: int) -> Callable[[int], float]:
    return lambda tokens: 1.0 + 0.0236 * max(tokens, tile)


def test_a_prompt_that_has_begun_is_not_left_lying() -> None:
    assert set(budgets(bent, 100, 50)) == {0, 464}
    begun, pace = LOAD._replace(begun=True), pace_of(bent)
    assert {pace.budget(begun, rest_of(100)).compute_side for _ in range(50)} == {464}
    pace = pace_of(bent)
    sizes = [pace.budget(load, rest_of(100)).compute_side for load in (begun, LOAD, LOAD)]
    assert sizes == [464, 0, 0]  # it counts against what follows


def test_an_engine_with_nothing_to_decode_goes_at_full_speed() -> None:
    pace = pace_of(straight)
    for load, rest in (
        (StepLoad(0, 0), RemainingWork(1.0, 1e9)),
        (LOAD, RemainingWork(1.0, 0.0)),
        (LOAD, RemainingWork(float("inf"), 1.0)),
    ):
        assert pace.budget(load, rest).compute_side == MOST


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_device_that_is_slower_in_all_is_paced_alike(factor: float) -> None:
    def slower(prompt_tokens: int, decodes: int, kv_tokens: float) -> float:
        return factor * KERNELS(prompt_tokens, decodes, kv_tokens)

    assert budgets(slower, 400, 20) == budgets(KERNELS, 400, 20)


KERNELS = stock_steps(COST)


def test_steps_are_those_of_measured_kernels_where_there_are_some() -> None:
    assert isinstance(KERNELS, KernelSteps)
    small = CostModel(ModelSpec.named("SmolLM2-135M"), DeviceSpec.named("L40S"))
    assert isinstance(stock_steps(small), RateSteps)
    jump = [KERNELS(tokens - 64, 64, 0.0) for tokens in (480, 512, 544)]
    assert jump[2] - jump[1] > 5 * (jump[1] - jump[0])  # a tile more, on an A100


def test_weights_hide_the_first_tokens_by_the_rates_of_a_device() -> None:
    steps = RateSteps(COST)
    assert steps(100, 20, 100_000) == steps(0, 20, 100_000)
    assert steps(2000, 20, 100_000) > 1.5 * steps(0, 20, 100_000)


@given(
    running=st.integers(0, 5000),
    kv=st.floats(0, 1e7),
    compute=st.floats(0, allow_nan=False),
    memory=st.floats(0, allow_nan=False),
    steps=st.sampled_from([tiles, free_up_to_knee, straight, KERNELS, RateSteps(COST)]),
)
def test_the_budget_stays_within_bounds(
    running: int, kv: float, compute: float, memory: float, steps: StepSeconds
) -> None:
    pace = pace_of(steps)
    for _ in range(3):
        budget = pace.budget(StepLoad(running, kv), RemainingWork(compute, memory))
        assert 0 <= budget.compute_side == budget.memory_side <= MOST
        assert running or budget.compute_side == MOST


class WholeMemory(FullSteps):
    """All memory is worth filling."""

    def enough(self, full: FullStep) -> float:
        return 1.0


@given(tokens=st.floats(0, 8000), running=st.integers(1, 600))
def test_over_many_steps_no_less_is_computed_than_is_left(tokens: float, running: int) -> None:
    load = StepLoad(running, 300_000)
    pace, rest = MarginalPace(WholeMemory(COST, KERNELS, SLOTS, MOST)), rest_of(tokens, load)
    sizes = [pace.budget(load, rest).compute_side for _ in range(200)]
    assert sum(sizes) >= 200 * min(tokens, MOST) - max(sizes)
