"""Parts for data parallel ranks. Run: pytest test/simulator/test_partition.py"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import COST, Pool, pools

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.scan_order import Plan, build_plan, plan_tree

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmark" / "simulate"))

from partition import Part, partition


def mixed_pool(count: int = 4000) -> Pool:
    """Few-shot questions, chats behind one system prompt, and long outputs."""
    rng = np.random.default_rng(3)
    prefixes = [rng.integers(0, 30_000, 500) for _ in range(30)]
    system = rng.integers(0, 30_000, 200)
    nothing = np.zeros(0, dtype=np.int64)
    prompts, lengths = [], []
    for index in range(count):
        kind = index % 3
        head = prefixes[rng.integers(30)] if kind == 0 else system if kind == 1 else nothing
        prompts.append(np.append(head, rng.integers(0, 30_000, 80)).astype(np.int32))
        lengths.append([2.0, 200.0, 900.0][kind] * rng.lognormal(0, 0.3))
    return Pool(prompts, np.array(lengths), None)


def unique_tokens(plan: Plan, part: Part) -> int:
    mask = np.zeros(plan.prompt_tokens.size, dtype=bool)
    mask[part.requests] = True
    return plan.tree.restricted(mask).unique_tokens


@given(pools(), st.integers(1, 6))
def test_every_request_in_one_part_and_one_path_lost_per_cut(pool: Pool, ranks: int) -> None:
    plan = build_plan(pool.prompts, pool.output_tokens, COST, namespaces=pool.namespaces)
    parts = partition(plan, ranks)
    assert len(parts) == ranks
    assert sorted(np.concatenate([s.requests for s in parts])) == list(range(plan.order.size))
    position = np.argsort(plan.order)
    for part in parts:
        assert (np.diff(position[part.requests]) > 0).all()
    longest = max((p.size for p in pool.prompts), default=0)
    lost = sum(unique_tokens(plan, s) for s in parts) - plan.tree.unique_tokens
    assert 0 <= lost <= 2 * (ranks - 1) * longest


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_parts_are_balanced_in_compute_and_memory(ranks: int) -> None:
    pool = mixed_pool()
    plan = build_plan(pool.prompts, pool.output_tokens, COST)
    parts = partition(plan, ranks)
    for part in parts:
        assert part.compute_seconds == pytest.approx(plan.total_compute_seconds / ranks, rel=0.02)
        assert part.memory_seconds == pytest.approx(plan.total_memory_seconds / ranks, rel=0.02)
    lost = sum(unique_tokens(plan, s) for s in parts) - plan.tree.unique_tokens
    assert lost <= 2 * (ranks - 1) * 580


def test_a_part_can_be_planned_on_its_own() -> None:
    pool = mixed_pool(600)
    plan = build_plan(pool.prompts, pool.output_tokens, COST)
    part = partition(plan, 2)[0]
    mask = np.zeros(plan.order.size, dtype=bool)
    mask[part.requests] = True
    own = plan_tree(PrefixTree.build(pool.prompts).restricted(mask), pool.output_tokens, COST)
    assert sorted(own.order) == sorted(part.requests)
    assert own.total_memory_seconds == pytest.approx(part.memory_seconds)
    assert own.root_density == pytest.approx(plan.root_density, rel=0.1)


def test_more_ranks_than_requests_leaves_some_idle() -> None:
    plan = build_plan([np.array([1]), np.array([2])], [5.0, 5.0], COST)
    parts = partition(plan, 5)
    assert sorted(len(s.requests) for s in parts) == [0, 0, 0, 1, 1]


def test_one_rank_gets_everything_and_none_is_refused() -> None:
    plan = build_plan([np.array([1]), np.array([2])], [5.0, 9.0], COST)
    np.testing.assert_array_equal(partition(plan, 1)[0].requests, plan.order)
    with pytest.raises(ValueError, match="at least 1"):
        partition(plan, 0)
