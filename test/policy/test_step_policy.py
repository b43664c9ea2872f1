"""The step policy on a small engine: every request once, memory kept, it always ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_engine import SmallEngine

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.lengths.forecast import LEVELS, LengthForecast
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.pace import FixedPace, Pace, RatioPace
from sglang.srt.blendserve.policy.paper import PaperPolicy
from sglang.srt.blendserve.policy.select import StepPolicy
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest, shared_tokens
from sglang.srt.blendserve.pool.request_pool import RequestPool

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))
SLOTS = 400


def engine_for(
    requests: list[tuple[list[int], int, int]],
    *,
    slots: int = SLOTS,
    chunk: int = 64,
    pace: str = "ratio",
    whole_prompts: bool = False,
    rules: PlanningRules | None = None,
) -> SmallEngine:
    """An engine with a pool of (prompt, max_tokens, true length) requests."""
    pool = RequestPool(COST, slots, rules=rules)
    true_length = {}
    for number, (prompt, max_tokens, length) in enumerate(requests):
        rid = f"r{number}"
        true_length[rid] = max(1, min(length, max_tokens))
        pool.add(PoolRequest(rid, np.array(prompt, dtype=np.int32), max_tokens))
    rule: Pace = FixedPace(chunk) if pace == "fixed" else RatioPace(COST, slots, chunk)
    policy = StepPolicy(pool, rule, max_tokens=chunk, whole_prompts=whole_prompts)
    return SmallEngine(pool, policy, true_length, slots)


prompts = st.lists(st.integers(0, 3), min_size=1, max_size=30)
requests = st.lists(
    st.tuples(prompts, st.integers(1, 120), st.integers(1, 120)), min_size=1, max_size=25
)


@settings(deadline=None, max_examples=60)
@given(
    requests=requests,
    chunk=st.sampled_from([1, 7, 64]),
    pace=st.sampled_from(["ratio", "fixed"]),
    whole_prompts=st.booleans(),
)
def test_every_request_ends_once_whatever_its_length(
    requests: list[tuple[list[int], int, int]], chunk: int, pace: str, whole_prompts: bool
) -> None:
    engine = engine_for(requests, chunk=chunk, pace=pace, whole_prompts=whole_prompts)
    engine.run()
    assert sorted(engine.finished) == sorted(engine.true_length)
    assert sorted(set(engine.started)) == sorted(engine.true_length)
    assert len(engine.started) == len(requests) + engine.retractions
    assert len(engine.pool) == 0
    assert engine.pool.table.running == {}
    assert engine.most_used <= SLOTS


@settings(deadline=None, max_examples=60)
@given(
    requests=requests,
    shared=st.integers(0, 120),
    prefixes=st.integers(1, 3),
    chunk=st.sampled_from([16, 64, 400]),
    pace=st.sampled_from(["ratio", "fixed"]),
)
def test_known_lengths_are_never_retracted(
    requests: list[tuple[list[int], int, int]], shared: int, prefixes: int, chunk: int, pace: str
) -> None:
    """Whoever computed a shared prefix, it is in use until the last one in flight that begins
    with it has ended."""
    engine = engine_for(
        [
            (
                [*range(1000 * (number % prefixes), 1000 * (number % prefixes) + shared), *prompt],
                tokens,
                tokens,
            )
            for number, (prompt, tokens, _) in enumerate(requests)
        ],
        chunk=chunk,
        pace=pace,
    )
    for request in engine.pool.table.everyone_waiting():
        request.known_length = True
    engine.run()
    assert engine.retractions == 0
    assert engine.most_used <= SLOTS


def test_a_pool_that_never_runs_empty_forgets_what_has_ended() -> None:
    rules = PlanningRules(least_ended=8)
    engine = engine_for([([1, 2, number], 6, 4) for number in range(10)], rules=rules)
    most, arrived = 0, 10
    while len(engine.pool) or engine.decoding or engine.chunk is not None:
        if arrived < 400:
            rid = f"r{arrived}"
            engine.true_length[rid] = 4
            engine.pool.add(PoolRequest(rid, np.array([arrived, 2, 3], dtype=np.int32), 6))
            arrived += 1
        engine.step()
        most = max(most, len(engine.pool.table.all))
    assert sorted(engine.finished) == sorted(engine.true_length)
    assert len(engine.finished) == 400
    assert most < 100


def test_a_shared_prefix_is_computed_once() -> None:
    prefix = list(range(100, 140))
    batch = [([*prefix, number, number], 4, 4) for number in range(20)]
    engine = engine_for(batch, chunk=256)
    engine.run()
    assert engine.computed == 40 + 20 * 2


def test_both_ends_are_served_from_the_start() -> None:
    """A pool of long prompts and of long outputs never runs one kind after the other."""
    rng = np.random.default_rng(0)
    compute = [(rng.integers(0, 9999, 60).tolist(), 2, 2) for _ in range(60)]
    memory = [(rng.integers(0, 9999, 3).tolist(), 90, 90) for _ in range(60)]
    engine = engine_for(compute + memory, slots=2000, chunk=128)
    for request in engine.pool.table.everyone_waiting():
        request.known_length = True
    engine.run()
    half = engine.started[:60]
    from_memory_end = sum(int(rid[1:]) >= 60 for rid in half)
    assert 10 <= from_memory_end <= 50


def test_short_requests_of_known_lengths_fill_the_memory_between_the_ends_of_long_ones() -> None:
    """Far more long ones stand before them in the plan than are passed over for unknown lengths."""
    rng = np.random.default_rng(2)
    kinds = [(3, 300)] * 20 + [(3, 40)] * 20 + [(60, 2)] * 200
    batch = [(rng.integers(0, 9999, size).tolist(), out, out) for size, out in kinds]
    engine = engine_for(batch, slots=1000, chunk=64)
    for request in engine.pool.table.everyone_waiting():
        request.known_length = True
    for _ in range(60):
        engine.step()
    started = [int(rid[1:]) for rid in engine.started]
    assert sum(number < 20 for number in started) in (1, 2, 3)  # more do not fit
    assert sum(20 <= number < 40 for number in started) >= 5
    engine.run()
    assert engine.retractions == 0


def test_the_sample_of_lengths_is_on_neither_budget_of_the_paper_s_scanner() -> None:
    """A budget in debt for it would keep an end from being served for thousands of steps."""
    rng = np.random.default_rng(1)
    batch = [(rng.integers(0, 9999, 20).tolist(), 90, int(rng.integers(1, 90))) for _ in range(900)]
    engine = engine_for(batch, slots=4000, chunk=256)
    policy = engine.policy = PaperPolicy(engine.pool, max_tokens=256)
    for _ in range(3):
        engine.step()
    assert engine.pool.current.next_sample() is None
    # No more than what one prompt exceeds the budget by.
    assert min(policy.saved.values()) >= -20
    engine.run()
    assert sorted(engine.finished) == sorted(engine.true_length)


def test_requests_that_run_far_longer_than_expected_count_for_the_memory_bound_end() -> None:
    engine = engine_for([([7, 8, number], 300, 300) for number in range(30)], slots=6000)
    for request in engine.pool.table.everyone_waiting():
        request.known_length = True
    for _ in range(3):
        engine.step()
    late, early = engine.decoding[:2]
    for request in (late, early):
        request.side = Side.COMPUTE
    late.expected_tokens = 2.0
    for _ in range(20):
        engine.step()
    assert (late.side, early.side) == (Side.MEMORY, Side.COMPUTE)


def test_nothing_to_plan_for_an_empty_pool() -> None:
    pool = RequestPool(COST, SLOTS)
    assert not pool.plan_if_due(quiet=True)
    assert pool.current.peek(Side.COMPUTE) is None
    assert len(pool) == 0


def test_an_id_enters_the_pool_once() -> None:
    engine = engine_for([([1, 2], 3, 3)])
    with pytest.raises(ValueError, match="already in the pool"):
        engine.pool.add(PoolRequest("r0", np.array([1], dtype=np.int32), 1))


@given(prompts, prompts)
def test_shared_tokens(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert shared_tokens(np.array(one), np.array(other)) == expected


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinity over infinity
@settings(deadline=None, max_examples=25)
@given(
    requests=requests,
    predicted=st.sampled_from([0.0, 1.0, 1e12, np.inf, "reversed", "random"]),
    pace=st.sampled_from(["ratio", "fixed"]),
)
def test_no_prediction_however_wrong_loses_a_request_or_stops_the_engine(
    requests: list[tuple[list[int], int, int]], predicted: float | str, pace: str
) -> None:
    """Predictions of 0 and infinity, the shortest for the longest, and noise."""
    rng = np.random.default_rng(0)

    def wrong(index: NDArray[np.int64]) -> NDArray[np.float64]:
        if predicted == "random":
            return rng.choice([0.0, 1.0, 1e9, np.inf], (index.size, LEVELS.size))
        if predicted == "reversed":
            true = np.array([min(most, length) for _, most, length in requests])
            return np.repeat(121.0 - true[index, None], LEVELS.size, axis=1)
        return np.full((index.size, LEVELS.size), float(predicted))

    def for_the_plan(forecast: LengthForecast, *_: object) -> NDArray[np.float64]:
        return np.minimum(wrong(np.arange(len(requests))).mean(axis=1), 1e12)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LengthForecast, "renew", for_the_plan)
        patch.setattr(
            LengthForecast, "remaining", lambda self, index, lived: wrong(np.asarray(index))
        )
        patch.setattr(LengthForecast, "fresh", lambda self, request: wrong(np.array([request]))[0])
        engine = engine_for(requests, pace=pace)
        engine.run()
    assert sorted(engine.finished) == sorted(engine.true_length)
    assert len(engine.started) == len(requests) + engine.retractions
    assert engine.most_used <= SLOTS
