"""Cases of the step policy on the simulator's engine, each with what it is there for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from played_engine import MACHINE, SLOTS, Asked, Played

from sglang.srt.blendserve.lengths.forecast import LEVELS, LengthForecast
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.pace import PACES
from sglang.srt.blendserve.policy.tuning import Tuning
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest, shared_tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool

IN_ORDER = PlanningRules(arrival_order=True)

prompts = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def random_prompts(seed: int, sizes: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 9999, size).tolist() for size in sizes]


def test_a_pool_that_never_runs_empty_forgets_what_has_ended() -> None:
    asked = [Asked([n, 2, 3], 6, 4, arrives=max(0, n - 10)) for n in range(200)]
    played = Played(asked, rules=PlanningRules(least_ended=8, kept_ended=4))
    most = 0
    while played.engine.left:
        played.run(steps=1)
        most = max(most, len(played.pool.table.all))
    assert sorted(played.ended) == [*range(200)]
    assert most < 100


@pytest.mark.parametrize("pace", PACES)
def test_a_shared_prefix_is_computed_once(pace: str) -> None:
    prefix = list(range(100, 140))
    asked = [Asked([*prefix, number, number], 4, 4) for number in range(20)]
    played = Played(asked, pace, max_tokens=256).run()
    assert played.engine.totals.prefilled == 40 + 20 * 2


@pytest.mark.parametrize("pace", ["marginal", "fixed"])
def test_both_sides_are_served_from_the_start(pace: str) -> None:
    """A pool of long prompts and of long outputs never runs one kind after the other."""
    kinds = [(60, 2)] * 60 + [(3, 90)] * 60
    prompts = random_prompts(0, [size for size, _ in kinds])
    asked = [Asked(p, out, out, known=True) for p, (_, out) in zip(prompts, kinds, strict=True)]
    played = Played(asked, pace, slots=2000, max_tokens=128).run()
    from_memory_side = sum(number >= 60 for number in played.started[:60])
    assert 10 <= from_memory_side <= 50


@pytest.mark.parametrize("pace", ["marginal", "fixed"])
def test_short_requests_of_known_lengths_fill_the_memory_between_the_ends_of_long_ones(
    pace: str,
) -> None:
    """Far more long ones stand before them in the plan than are passed over for unknown lengths."""
    kinds = [(3, 300)] * 20 + [(3, 40)] * 20 + [(60, 2)] * 200
    prompts = random_prompts(2, [size for size, _ in kinds])
    asked = [Asked(p, out, out, known=True) for p, (_, out) in zip(prompts, kinds, strict=True)]
    to_the_end = Tuning(earned=math.inf)
    played = Played(asked, pace, slots=1000, tuning=to_the_end).run(steps=60)
    assert sum(number < 20 for number in played.started) in (1, 2, 3)  # more do not fit
    assert sum(20 <= number < 40 for number in played.started) >= 5
    assert played.run().given_back == 0


def test_a_request_that_need_not_wait_is_found_far_behind_those_that_wait() -> None:
    """A prefix is being computed for 300 requests; in their midst is one that has another."""
    prefix = list(range(100, 1100))
    asked = [Asked([*prefix, number], 4, 4, known=True) for number in range(301)]
    asked[150] = Asked([9000, *range(5000, 5030)], 4, 4, known=True)
    for look_ahead, there in ((64, False), (256, True)):
        tuning = Tuning(look_ahead=look_ahead)
        played = Played(asked, "fixed", slots=9000, max_tokens=2048, tuning=tuning, rules=IN_ORDER)
        started = played.run(steps=1).started
        assert len(started) == (2 if there else 1)
        assert (150 in started) == there


@pytest.mark.parametrize(("before", "there"), [(60, True), (70, False)])
def test_how_many_of_known_length_are_passed_over(before: int, there: bool) -> None:
    """From both sides, so many that do not fit beside a long one, and then one that does."""
    kinds = [(10, 900)] * before + [(10, 3)] + [(10, 900)] * before
    prompts = random_prompts(4, [size for size, _ in kinds])
    asked = [Asked(p, out, out, known=True) for p, (_, out) in zip(prompts, kinds, strict=True)]
    to_the_end = Tuning(earned=math.inf)
    played = Played(asked, "fixed", slots=1000, tuning=to_the_end, rules=IN_ORDER).run(steps=4)
    assert sum(number != before for number in played.started) == 1
    assert (before in played.started) == there


@pytest.mark.parametrize("known", [True, False])
def test_a_long_request_starts_although_memory_will_run_short_long_after(known: bool) -> None:
    """By then its slots have earned what computing it again costs. Where it must fit to its end,
    a third of the memory stays empty."""
    prompts = random_prompts(3, [3] * 12)
    asked = [Asked(prompt, 900, 900, known=known) for prompt in prompts]
    used = {}
    for earned in (1.0, math.inf):
        played = Played(asked, slots=1000, tuning=Tuning(earned=earned)).run()
        assert sorted(played.ended) == [*range(12)]
        used[earned] = played.engine.totals.kv_tokens / played.engine.totals.steps
        assert played.given_back <= 5 * 12
    assert used[1.0] > 1.15 * used[math.inf]


@pytest.mark.parametrize(("min_tokens", "alone"), [(1, False), (64, True)])
def test_an_engine_that_saves_up_whole_chunks_computes_prompts_alone(
    min_tokens: int, alone: bool
) -> None:
    played = Played([Asked([1, 2], 3, 3)], max_tokens=64, min_tokens=min_tokens)
    assert played.policy.full_steps.alone == alone


def test_a_slot_has_a_price_while_something_runs_and_none_before() -> None:
    asked = [Asked(prompt, 200, 200) for prompt in random_prompts(3, [3] * 40)]
    played = Played(asked, slots=1000)
    assert played.policy.caution.slot_price == 0
    played.run(steps=40)
    assert played.policy.caution.slot_price > 0


def test_the_sample_of_lengths_is_on_neither_budget_of_the_paper_s_scanner() -> None:
    """A budget in debt for it would keep a side from being served for thousands of steps."""
    lengths = np.random.default_rng(1).integers(1, 90, 900).tolist()
    prompts = random_prompts(1, [20] * 900)
    asked = [Asked(p, 90, length) for p, length in zip(prompts, lengths, strict=True)]
    played = Played(asked, "paper", slots=4000, max_tokens=256).run(steps=3)
    assert played.pool.current.next_sample() is None
    # No more than what one prompt exceeds the budget by.
    assert min(played.policy.saved.values()) >= -20


def test_requests_that_run_far_longer_than_expected_count_for_the_memory_bound_side() -> None:
    asked = [Asked([7, 8, number], 300, 300, known=True) for number in range(30)]
    played = Played(asked, slots=6000).run(steps=3)
    late, early = played.decoding[:2]
    for request in (late, early):
        request.side = Side.COMPUTE
    late.expected_tokens = 2.0
    played.run(steps=20)
    assert (late.side, early.side) == (Side.MEMORY, Side.COMPUTE)


def test_nothing_to_plan_for_an_empty_pool() -> None:
    pool = RequestPool(MACHINE.cost, SLOTS)
    assert not pool.plan_if_due(quiet=True)
    assert pool.current.peek(Side.COMPUTE) is None
    assert len(pool) == 0


def test_an_id_enters_the_pool_once() -> None:
    pool = RequestPool(MACHINE.cost, SLOTS)
    pool.add(PoolRequest("r0", np.array([1, 2], dtype=np.int32), 3))
    with pytest.raises(ValueError, match="already in the pool"):
        pool.add(PoolRequest("r0", np.array([1], dtype=np.int32), 1))


@given(prompts, prompts)
def test_shared_tokens(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert shared_tokens(np.array(one), np.array(other)) == expected


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinity over infinity
@settings(deadline=None, max_examples=30)
@given(
    asked=st.lists(
        st.builds(
            lambda prompt, cap, length: Asked(prompt, cap, min(cap, length)),
            prompt=prompts,
            cap=st.integers(1, 120),
            length=st.integers(1, 120),
        ),
        min_size=1,
        max_size=25,
    ),
    predicted=st.sampled_from([0.0, 1.0, 1e12, np.inf, "reversed", "random"]),
    # The paper's scanner fails at infinite predictions, which are none of its algorithm.
    pace=st.sampled_from([pace for pace in PACES if pace != "paper"]),
)
def test_no_prediction_however_wrong_loses_a_request_or_stops_the_engine(
    asked: list[Asked], predicted: float | str, pace: str
) -> None:
    """Predictions of 0 and infinity, the shortest for the longest, and noise."""
    rng = np.random.default_rng(0)

    def wrong(index: NDArray[np.int64]) -> NDArray[np.float64]:
        if predicted == "random":
            return rng.choice([0.0, 1.0, 1e9, np.inf], (index.size, LEVELS.size))
        if predicted == "reversed":
            true = np.array([one.length for one in asked])
            return np.repeat(121.0 - true[index, None], LEVELS.size, axis=1)
        return np.full((index.size, LEVELS.size), float(predicted))

    def for_the_plan(forecast: LengthForecast, *_: object) -> NDArray[np.float64]:
        return np.minimum(wrong(np.arange(len(asked))).mean(axis=1), 1e12)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LengthForecast, "renew", for_the_plan)
        patch.setattr(
            LengthForecast, "remaining", lambda self, index, lived: wrong(np.asarray(index))
        )
        patch.setattr(LengthForecast, "fresh", lambda self, request: wrong(np.array([request]))[0])
        played = Played(asked, pace).run()
    assert sorted(played.ended) == [*range(len(asked))]
    assert len(played.started) <= len(asked) + played.given_back
