"""Shares for data parallel ranks. Run: pytest test/simulator/test_partition.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import COST, Pool, pools

from sglang.srt.blendserve.plan.scan_plan import Plan, build_plan, replan
from sglang.srt.blendserve.simulator.partition import Share, partition


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


def unique_tokens(plan: Plan, share: Share) -> int:
    mask = np.zeros(plan.trie.requests, dtype=bool)
    mask[share.requests] = True
    return plan.tree.restricted(mask).unique_tokens


@given(pools(), st.integers(1, 6))
def test_every_request_in_one_share_and_one_path_lost_per_cut(pool: Pool, ranks: int) -> None:
    plan = build_plan(pool.prompts, pool.output_tokens, COST, namespaces=pool.namespaces)
    shares = partition(plan, ranks)
    assert len(shares) == ranks
    assert sorted(np.concatenate([s.requests for s in shares])) == list(range(plan.order.size))
    for share in shares:
        assert (np.diff(plan.position[share.requests]) > 0).all()
    longest = max((p.size for p in pool.prompts), default=0)
    lost = sum(unique_tokens(plan, s) for s in shares) - plan.tree.unique_tokens
    assert 0 <= lost <= 2 * (ranks - 1) * longest


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_shares_are_balanced_in_compute_and_memory(ranks: int) -> None:
    pool = mixed_pool()
    plan = build_plan(pool.prompts, pool.output_tokens, COST)
    shares = partition(plan, ranks)
    for share in shares:
        assert share.compute_seconds == pytest.approx(plan.total_compute_seconds / ranks, rel=0.02)
        assert share.memory_seconds == pytest.approx(plan.total_memory_seconds / ranks, rel=0.02)
    lost = sum(unique_tokens(plan, s) for s in shares) - plan.tree.unique_tokens
    assert lost <= 2 * (ranks - 1) * 580


def test_a_share_can_be_planned_on_its_own() -> None:
    pool = mixed_pool(600)
    plan = build_plan(pool.prompts, pool.output_tokens, COST)
    share = partition(plan, 2)[0]
    mask = np.zeros(plan.order.size, dtype=bool)
    mask[share.requests] = True
    own = replan(plan, pool.output_tokens, COST, remaining=mask)
    assert sorted(own.order) == sorted(share.requests)
    assert own.total_memory_seconds == pytest.approx(share.memory_seconds)
    assert own.root_density == pytest.approx(plan.root_density, rel=0.1)


def test_more_ranks_than_requests_leaves_some_idle() -> None:
    plan = build_plan([np.array([1]), np.array([2])], [5.0, 5.0], COST)
    shares = partition(plan, 5)
    assert sorted(len(s.requests) for s in shares) == [0, 0, 0, 1, 1]


def test_one_rank_gets_everything_and_none_is_refused() -> None:
    plan = build_plan([np.array([1]), np.array([2])], [5.0, 9.0], COST)
    np.testing.assert_array_equal(partition(plan, 1)[0].requests, plan.order)
    with pytest.raises(ValueError, match="at least 1"):
        partition(plan, 0)
