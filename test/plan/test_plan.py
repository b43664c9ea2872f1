"""From prompts to a scan order: annotations, layer sort.

Run: pytest test/plan/test_plan.py
"""

from __future__ import annotations

from dataclasses import fields
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import COST, Pool, pools

from sglang.srt.blendserve.plan.annotations import annotate, request_costs
from sglang.srt.blendserve.plan.layer_sort import layer_sort
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.scan_order import Plan, build_plan, plan_tree


def plan_of(pool: Pool, kv_slots: int | None = None) -> Plan:
    return build_plan(
        pool.prompts,
        pool.output_tokens,
        COST,
        namespaces=pool.namespaces,
        kv_slots=kv_slots,
    )


def few_shot_pool(subjects: int = 20, questions: int = 50) -> Pool:
    """Long shared prefixes with short answers, but for one long answer in 25."""
    rng = np.random.default_rng(7)
    prompts, lengths = [], []
    for _ in range(subjects):
        prefix = rng.integers(0, 30_000, 500)
        for question in range(questions):
            prompts.append(np.append(prefix, rng.integers(0, 30_000, 90)).astype(np.int32))
            lengths.append(3000.0 if question % 25 == 0 else 2.0)
    return Pool(prompts, np.array(lengths), None)


# Annotations


@given(pools())
def test_costs_of_the_requests_add_up_to_the_tree(pool: Pool) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    costs = request_costs(tree, pool.output_tokens, COST)
    prompt = tree.depth[tree.leaf_nodes]
    prefill = COST.prefill_seconds(tree.segment, tree.depth[tree.parent]).sum()
    output = COST.output_seconds(prompt, pool.output_tokens[tree.leaf_requests]).sum()
    assert costs.computed_tokens.sum() == pytest.approx(tree.unique_tokens)
    assert costs.compute_seconds.sum() == pytest.approx(prefill + output)


@given(pools(least=1))
def test_a_request_pays_its_even_share_of_every_prefix(pool: Pool) -> None:
    costs = request_costs(PrefixTree.build(pool.prompts), pool.output_tokens, COST)
    for request, prompt in enumerate(pool.prompts):
        share = 0.0
        for end in range(1, prompt.size + 1):
            users = sum(p[:end].tolist() == prompt[:end].tolist() for p in pool.prompts)
            share += 1 / users
        assert costs.computed_tokens[request] == pytest.approx(share)
    np.testing.assert_array_equal(costs.prompt_tokens, [p.size for p in pool.prompts])


@given(pools())
def test_annotations_are_sums_over_the_subtree(pool: Pool) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    costs = request_costs(tree, pool.output_tokens, COST)
    notes = annotate(tree, costs)
    for node in range(tree.nodes):
        below = tree.leaf_requests[tree.leaf_start[node] : tree.leaf_end[node]]
        assert notes.requests[node] == below.size
        assert notes.prompt_tokens[node] == costs.prompt_tokens[below].sum()
        assert notes.output_tokens[node] == pytest.approx(costs.output_tokens[below].sum())
        assert notes.compute_seconds[node] == pytest.approx(costs.compute_seconds[below].sum())
        assert notes.memory_seconds[node] == pytest.approx(costs.memory_seconds[below].sum())
        assert notes.unique_tokens[node] == tree.segment[node : tree.subtree_end[node]].sum()
    assert notes.sharing[0] == pytest.approx(tree.sharing)


def test_shared_prefix_makes_a_request_less_compute_bound() -> None:
    """Counted once a request, shared prefixes make a pool look too dense (docs/algorithm.md)."""
    pool = few_shot_pool()
    costs = request_costs(PrefixTree.build(pool.prompts), pool.output_tokens, COST)
    alone = COST.density(590.0, 2.0)
    assert costs.density[1] < 0.25 * float(alone)


# Layer sort


@given(pools())
def test_layer_sort_orders_siblings_and_keeps_all_sharing(pool: Pool) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    notes = annotate(tree, request_costs(tree, pool.output_tokens, COST))
    result, order = layer_sort(tree, notes.density)
    sorted_notes = notes.take(order)
    result.check_integrity()
    assert result.unique_tokens == tree.unique_tokens
    for node in range(1, result.nodes):
        sibling = result.subtree_end[node]
        if sibling < result.subtree_end[result.parent[node]]:
            one, other = sorted_notes.density[[node, sibling]].astype(np.float32)
            assert one >= other


# The whole plan


@given(pools())
def test_every_request_once_in_order(pool: Pool) -> None:
    plan = plan_of(pool)
    assert sorted(plan.order) == list(range(len(pool.prompts)))
    np.testing.assert_array_equal(plan.tree.leaf_requests, plan.order)


@given(pools())
def test_the_same_input_gives_the_same_plan_bit_for_bit(pool: Pool) -> None:
    first, second = plan_of(pool), plan_of(pool)
    for field in fields(Plan):
        one, two = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, np.ndarray):
            assert one.tobytes() == two.tobytes(), field.name
        elif isinstance(one, float):
            assert one == two, field.name


@given(pools(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_nothing_but_the_indices(pool: Pool, random: Random) -> None:
    shuffle = list(range(len(pool.prompts)))
    random.shuffle(shuffle)
    other = Pool(
        [pool.prompts[i] for i in shuffle],
        pool.output_tokens[shuffle],
        None if pool.namespaces is None else pool.namespaces[shuffle],
    )
    one, two = plan_of(pool), plan_of(other)

    # Requests that are equal in everything may swap places.
    def contents(p: Pool, plan: Plan) -> list[tuple[object, ...]]:
        return [(p.prompts[r].tolist(), p.output_tokens[r]) for r in plan.order]

    assert contents(pool, one) == contents(other, two)
    np.testing.assert_allclose(one.costs.density[one.order], two.costs.density[two.order])
    assert one.sharing == two.sharing
    assert one.total_compute_seconds == pytest.approx(two.total_compute_seconds)


@given(pools(least=2), st.data())
def test_planning_the_rest_of_a_tree_is_planning_the_rest(pool: Pool, data: st.DataObject) -> None:
    count = len(pool.prompts)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
    lengths = np.ceil(pool.output_tokens / 2)
    rest = np.flatnonzero(mask)
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    again = plan_tree(tree.restricted(mask), lengths, COST)
    assert sorted(again.order) == rest.tolist()
    assert again.compute_seconds[~mask].sum() == 0
    spaces = None if pool.namespaces is None else pool.namespaces[mask]
    fresh = build_plan([pool.prompts[r] for r in rest], lengths[mask], COST, namespaces=spaces)
    assert again.sharing == pytest.approx(fresh.sharing)
    assert again.optimum_seconds == pytest.approx(fresh.optimum_seconds)
    assert again.total_memory_seconds == pytest.approx(fresh.total_memory_seconds)


def test_optimum_and_bounds() -> None:
    pool = few_shot_pool()
    plan = plan_of(pool, kv_slots=100_000)
    memory = COST.memory_seconds(590.0, pool.output_tokens).sum()
    assert plan.total_memory_seconds == pytest.approx(memory)
    assert plan.optimum_seconds == pytest.approx(max(plan.total_compute_seconds, memory))
    assert plan.root_density == pytest.approx(
        plan.total_compute_seconds / plan.total_memory_seconds
    )
    # What a subject's questions share is read for each of them and stored once.
    own = COST.memory_seconds(90.0 + 500 / 50, pool.output_tokens).sum()
    weights = float(COST.weights_seconds(1)) / float(COST.kv_read_seconds(100_000))
    assert plan.bound_seconds == pytest.approx(max(plan.optimum_seconds, memory + own * weights))
    assert plan_of(pool).bound_seconds is None
    with pytest.raises(ValueError, match="kv_slots"):
        plan_of(pool, kv_slots=0)


def test_the_optimum_of_a_compute_bound_pool_is_its_compute() -> None:
    pool = few_shot_pool()
    plan = plan_of(pool._replace(output_tokens=np.minimum(pool.output_tokens, 20.0)))
    assert plan.root_density > 1
    assert plan.optimum_seconds == plan.total_compute_seconds


def test_a_plan_keeps_all_sharing() -> None:
    pool = few_shot_pool()
    plan, tree = plan_of(pool), PrefixTree.build(pool.prompts)
    assert plan.tree.unique_tokens == tree.unique_tokens
    assert plan.sharing == tree.sharing


@pytest.mark.parametrize("lengths", [[1.0], [1.0, -2.0], [1.0, np.nan], [1.0, np.inf]])
def test_wrong_lengths_are_refused(lengths: list[float]) -> None:
    with pytest.raises(ValueError, match="output_tokens"):
        build_plan([np.array([1]), np.array([2])], lengths, COST)


def test_lengths_that_vary_cost_more_memory_than_their_mean() -> None:
    """Of two kinds with the same mean, the one whose lengths vary is the more memory-bound."""
    prompts = [np.arange(100, dtype=np.int32) + 1000 * n for n in range(8)]
    mean = np.full(8, 200.0)
    exact = 100 * mean + mean**2 / 2
    varying = np.where(np.arange(8) % 2, exact, exact + 200.0**2)
    tree = PrefixTree.build(prompts)
    plan = plan_tree(tree, mean, COST, kv_reads=varying)
    assert set(plan.order[:4].tolist()) == {1, 3, 5, 7}
    assert plan.total_memory_seconds == pytest.approx(float(COST.kv_read_seconds(varying.sum())))
    assert plan.compute_seconds[0] == plan.compute_seconds[1]
    same = plan_tree(tree, mean, COST, kv_reads=exact)
    assert np.allclose(same.memory_seconds, plan_tree(tree, mean, COST).memory_seconds)
    with pytest.raises(ValueError, match="kv_reads must have shape"):
        plan_tree(tree, mean, COST, kv_reads=exact[:3])
