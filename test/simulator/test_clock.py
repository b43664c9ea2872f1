"""The clock of the simulated device, against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_workloads import requests

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.simulator.fast import FastEngine
from sglang.srt.blendserve.simulator.queue_policy import QueuePolicy
from sglang.srt.blendserve.simulator.step_cost import StepCost, StepWork, bound
from sglang.srt.blendserve.simulator.workload import Workload

# One second a prefill token, 0.5 a decode token, 0.25 a sampled one, 0.001 a KV token read, 0.1 for
# the weights, 0.01 for a step. Attention arithmetic is left out of these cases.
COST = StepCost(
    engine="overlap",
    prefill_token=1.0,
    prefill_score=0.0,
    decode_token=0.5,
    sample_token=0.25,
    decode_kv_compute=0.0,
    kv_read=0.001,
    dense_weights=0.1,
    expert_weights=0.0,
    expert_missed=0.0,
    interference=1.0,
    overhead=0.01,
)


def play(workload: Workload, cost: StepCost, chunk: int, slots: int = 10_000) -> FastEngine:
    tree = PrefixTree.build(workload.prompts())
    engine = FastEngine(workload, tree, cost, slots)
    engine.run(QueuePolicy(np.arange(workload.size), workload, chunk))
    return engine


def test_two_requests_by_hand() -> None:
    # Request 0: prompt 3, output 3; request 1: prompt 2, output 1. Chunk 4.
    # Step 1: prompt of 0 (3) and 1 token of 1's; 0 is sampled.      3 + 1 + 0.25        = 4.25
    # Step 2: 0 decodes over 4 KV tokens; the last token of 1.       0.5 + 1 + 0.25      = 1.75
    # Step 3: 0 decodes over 5 KV tokens: weights 0.1 + 0.005 < 0.5  0.5                 = 0.5
    engine = play(requests([(3, 3), (2, 1)]), COST, chunk=4)
    totals = engine.totals
    assert totals.steps == 3
    assert totals.prefilled == 5
    assert totals.kv_tokens == 4 + 5
    assert totals.compute == pytest.approx(4.25 + 1.75 + 0.5)
    assert totals.memory == pytest.approx(3 * 0.1 + 0.009)
    assert totals.seconds == pytest.approx(4.25 + 1.75 + 0.5 + 3 * 0.01)


def test_engines_overlap_or_add_up() -> None:
    work = StepWork(prefill_tokens=2, prefill_scores=0.0, sampled=0, decodes=4, kv_tokens=5000)
    # Compute 2 + 4 * 0.5 = 4; memory 5 + 0.1.
    overlap = replace(COST, interference=1.1).step(work)
    assert (overlap.compute, overlap.memory) == pytest.approx((4.0, 5.1))
    assert overlap.seconds == pytest.approx(5.1 * 1.1 + 0.01)
    # What is slowed down is then the 4 seconds in which both are busy.
    part = replace(COST, interference=1.1, whole_steps=False).step(work)
    assert part.seconds == pytest.approx(5.1 + 0.1 * 4 + 0.01)
    # GEMM hides the weights, not the KV read.
    sequential = replace(COST, engine="sequential").step(work)
    assert sequential.seconds == pytest.approx(4.0 + 5.0 + 0.01)


def test_loading_weights_takes_its_time_under_a_small_gemm() -> None:
    cost = replace(COST, engine="sequential", dense_weights=3.0)
    work = StepWork(prefill_tokens=1, prefill_scores=0.0, sampled=1, decodes=0, kv_tokens=0)
    assert cost.step(work).seconds == pytest.approx(3.0 + 0.01)


def test_prefill_attention_counts_causal_pairs() -> None:
    # 5 tokens in chunks of 2: pairs (2 * 1) + (2 * 3) + (1 * 4.5).
    cost = replace(COST, prefill_token=0.0, sample_token=0.0, prefill_score=1.0, overhead=0.0)
    engine = play(requests([(5, 1)]), cost, chunk=2)
    assert engine.totals.compute == pytest.approx(2 + 6 + 4.5)


def test_no_schedule_beats_the_bound(mixed: Workload) -> None:
    for chunk in (64, 512):
        engine = play(mixed, replace(COST, overhead=0.0), chunk=chunk, slots=6000)
        assert engine.totals.seconds >= bound(mixed, COST, 6000).seconds


def test_no_schedule_beats_the_bound_where_many_share_what_fills_the_cache() -> None:
    """Ten times as many tokens are read in a step as are stored. Where each reader's tokens counted
    as stored, the fewest steps were too many and a run took half of the bound."""
    behind_one = behind_a_prefix([40] * 60)
    memory_bound = replace(COST, prefill_token=0.0, kv_read=1e-6, overhead=0.0)
    engine = play(behind_one, memory_bound, chunk=512, slots=4000)
    assert engine.totals.kv_tokens > 5 * 4000 * engine.totals.steps / 10
    least = bound(behind_one, memory_bound, 4000).seconds
    assert 0.2 * engine.totals.seconds < least <= engine.totals.seconds


def test_the_bound_of_two_requests_behind_one_prefix() -> None:
    cost = replace(COST, engine="overlap", kv_read=1.0, dense_weights=7.0)
    two = behind_a_prefix([3, 5])
    least = bound(two, cost, 100)
    # Steps 2 and 4; each reads the prefix of 100, its own token and what it has generated.
    read = 2 * 101 + 3 + 4 * 101 + 10
    stored = 2 * 1 + 3 + 4 * 101 + 10  # the longer one's steps have the prefix
    assert least.memory == pytest.approx(read + 7.0 * stored / 100)
    assert bound(two.take(np.array([1, 0])), cost, 100) == least


def behind_a_prefix(outputs: list[int]) -> Workload:
    """Requests of one token behind a prefix of 100 tokens."""
    n = len(outputs)
    return Workload(
        name="one prefix",
        prompt_tokens=np.full(n, 101),
        output_tokens=np.array(outputs),
        max_tokens=np.array(outputs),
        prefix=np.zeros(n, dtype=np.int64),
        prefix_tokens=np.full(n, 100),
        source=np.zeros(n, dtype=np.int64),
        sources=("one",),
        seed=1,
    )


def test_every_request_ends_with_all_its_tokens(mixed: Workload) -> None:
    engine = play(mixed, COST, chunk=256, slots=3000)
    assert engine.left == 0
    assert not engine.running
    assert engine.cache.used == 0
    steps = mixed.output_tokens - 1.0
    reads = (steps * mixed.prompt_tokens + steps * (steps + 1) / 2).sum()
    # A request that is retracted and starts again decodes each of its tokens once all the same,
    # but the one that its second prefill gives comes without a decode step.
    assert engine.totals.kv_tokens <= reads
    if not engine.totals.retractions:
        assert engine.totals.kv_tokens == reads
