"""The prefix tree against naive definitions. Run: pytest test/plan/test_prefix_tree.py"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pools import Pool, Tokens, pools

from sglang.srt.blendserve.plan import trie_build
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree, path_sum


def distinct_prefixes(
    prompts: Sequence[Tokens], namespaces: NDArray[np.int64] | None = None
) -> int:
    """Tokens of the trie by definition: the number of different non-empty prefixes."""
    spaces = [0] * len(prompts) if namespaces is None else namespaces.tolist()
    return len(
        {
            (space, tuple(prompt[:end].tolist()))
            for space, prompt in zip(spaces, prompts, strict=True)
            for end in range(1, prompt.size + 1)
        }
    )


def tokens_of(tree: PrefixTree, prompts: Sequence[Tokens], node: int) -> list[int]:
    """All tokens from the root to the end of ``node``, read from the first request below it."""
    prompt = prompts[tree.leaf_requests[tree.leaf_start[node]]]
    return list(prompt[: tree.depth[node]])


@given(pools())
def test_tokens_are_the_distinct_prefixes(pool: Pool) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    tree.check_integrity()
    assert tree.unique_tokens == distinct_prefixes(pool.prompts, pool.namespaces)
    assert tree.prompt_tokens == sum(p.size for p in pool.prompts)


@given(pools())
def test_every_request_is_one_leaf_with_its_own_length(pool: Pool) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    assert sorted(tree.leaf_requests) == list(range(len(pool.prompts)))
    lengths = [pool.prompts[r].size for r in tree.leaf_requests]
    assert tree.depth[tree.leaf_nodes].tolist() == lengths


@given(pools(least=1))
def test_all_requests_below_a_node_share_its_tokens_and_no_sibling_could_join(pool: Pool) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    for node in range(1, tree.nodes):
        path = tokens_of(tree, pool.prompts, node)
        below = tree.leaf_requests[tree.leaf_start[node] : tree.leaf_end[node]]
        for request in below:
            assert pool.prompts[request][: len(path)].tolist() == path
        if pool.namespaces is not None:
            assert np.unique(pool.namespaces[below]).size == 1
        if tree.request[node] < 0:
            assert (tree.parent == node).sum() >= 2, "an inner node below the root must branch"


@given(pools())
def test_depth_first_order_is_the_order_of_the_tokens(pool: Pool) -> None:
    tree = PrefixTree.build(pool.prompts)
    expected = sorted(range(len(pool.prompts)), key=lambda i: (pool.prompts[i].tolist(), i))
    assert tree.leaf_requests.tolist() == expected


@given(pools(), st.randoms(use_true_random=False))
def test_reordering_siblings_keeps_all_sharing(pool: Pool, random: Random) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    rank = np.array([random.random() for _ in range(tree.nodes)])
    other, order = tree.reordered(rank)
    other.check_integrity()
    assert other.unique_tokens == tree.unique_tokens
    np.testing.assert_array_equal(other.depth, tree.depth[order])
    for node in range(1, other.nodes - 1):
        if other.subtree_end[node] < other.subtree_end[other.parent[node]]:
            sibling = other.subtree_end[node]
            assert rank[order[node]] <= rank[order[sibling]]


@given(pools(), st.data())
def test_restricted_tree_is_the_tree_of_the_rest(pool: Pool, data: st.DataObject) -> None:
    count = len(pool.prompts)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
    rest = PrefixTree.build(pool.prompts, pool.namespaces).restricted(mask)
    rest.check_integrity()
    assert sorted(rest.leaf_requests) == np.flatnonzero(mask).tolist()
    kept = [p for p, keep in zip(pool.prompts, mask, strict=True) if keep]
    spaces = None if pool.namespaces is None else pool.namespaces[mask]
    assert rest.unique_tokens == distinct_prefixes(kept, spaces)


@given(pools())
def test_sums_over_subtrees_and_paths(pool: Pool) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    values = np.arange(1, tree.nodes + 1)
    subtree, path = tree.subtree_sum(values), path_sum(tree.parent, values.astype(float))
    leaves = tree.leaf_sum(np.arange(len(pool.prompts)) + 1)
    for node in range(tree.nodes):
        assert subtree[node] == values[node : tree.subtree_end[node]].sum()
        below = tree.leaf_requests[tree.leaf_start[node] : tree.leaf_end[node]]
        assert leaves[node] == (below + 1).sum()
        above, at = values[node], node
        while at:
            at = tree.parent[at]
            above += values[at]
        assert path[node] == above


def slices_of_one(prompts: Sequence[NDArray[np.int32]]) -> tuple[list[NDArray[np.int32]], Any]:
    """The same prompts, the last one first in memory, as slices of one array that may not be
    written to, and where they begin there."""
    flat = np.concatenate([*reversed(prompts), np.zeros(1, dtype=np.int32)])[:-1]
    whole = np.frombuffer(flat.tobytes(), dtype=np.int32)
    sizes = np.array([prompt.size for prompt in prompts])
    start = whole.size - np.cumsum(sizes)
    slices = [whole[at : at + size] for at, size in zip(start, sizes, strict=True)]
    return slices, start


def test_long_common_prefixes() -> None:
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 100, 3000).astype(np.int32)
    prompts = [
        np.append(shared[: rng.integers(0, 3000)], rng.integers(0, 3, 5)).astype(np.int32)
        for _ in range(60)
    ]
    assert PrefixTree.build(prompts).unique_tokens == distinct_prefixes(prompts)


@given(pools())
def test_slices_of_one_array_are_not_copied_and_make_the_same_tree(pool: Pool) -> None:
    slices, start = slices_of_one(pool.prompts)
    tree = PrefixTree.build(slices, pool.namespaces, start)
    expected = PrefixTree.build(pool.prompts, pool.namespaces)
    for name in ("parent", "depth", "subtree_end", "request"):
        assert getattr(tree, name).tolist() == getattr(expected, name).tolist()


def test_prompts_are_copied_only_where_they_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [np.array(tokens, dtype=np.int32) for tokens in ([1, 2, 3], [1, 2], [4])]
    slices, start = slices_of_one(prompts)
    copied: list[int] = []
    copy = trie_build._Prompts._copy
    monkeypatch.setattr(
        trie_build._Prompts, "_copy", lambda self, given: copied.append(1) or copy(self, given)
    )
    PrefixTree.build(slices, None, start)
    assert copied == []
    # Another array among them, one whose place is not known, other numbers.
    for given_prompts, places in (
        ([*slices[:2], np.array([4], dtype=np.int32)], start),
        (slices, np.array([start[0], -1, start[2]])),
        (slices, None),
        ([one.astype(np.int64) for one in slices], start),
    ):
        before = len(copied)
        assert PrefixTree.build(given_prompts, None, places).unique_tokens == 4
        assert len(copied) == before + 1


def test_equal_prompts_are_leaves_of_length_zero() -> None:
    prompt = np.array([5, 6, 7], dtype=np.int32)
    tree = PrefixTree.build([prompt] * 4)
    assert tree.unique_tokens == 3
    assert tree.segment[tree.leaf_nodes].tolist() == [0] * 4
    assert tree.leaf_requests.tolist() == [0, 1, 2, 3]
    assert tree.sharing == pytest.approx(0.75)


def test_a_prompt_that_is_a_prefix_of_another() -> None:
    tree = PrefixTree.build([np.array([1, 2, 3]), np.array([1, 2])])
    assert tree.leaf_requests.tolist() == [1, 0]
    assert tree.segment.tolist() == [0, 2, 0, 1]


def test_no_requests_and_empty_prompts() -> None:
    assert PrefixTree.build([]).nodes == 1
    empty = np.zeros(0, dtype=np.int32)
    tree = PrefixTree.build([empty, np.array([1], dtype=np.int32), empty])
    tree.check_integrity()
    assert tree.unique_tokens == 1
    assert PrefixTree.build([empty]).sharing == 0


def test_token_ids_of_any_sign_and_width() -> None:
    wide = np.iinfo(np.int32)
    prompts = [np.array([wide.min, wide.max]), np.array([wide.max]), np.array([wide.min, 0])]
    assert PrefixTree.build(prompts).unique_tokens == 4


def test_namespaces_must_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        PrefixTree.build([np.array([1])], np.array([1, 2]))


def test_a_chain_of_prompts_each_a_prefix_of_the_next() -> None:
    longest = np.random.default_rng(1).integers(0, 9, 700).astype(np.int32)
    tree = PrefixTree.build([longest[:end] for end in range(1, 701)])
    tree.check_integrity()
    assert tree.unique_tokens == 700
    assert tree.leaf_requests.tolist() == list(range(700))


def test_a_tree_a_hundred_thousand_nodes_deep() -> None:
    """No recursion, no loop over levels: the chain a million-turn dialogue would make."""
    height = 100_000
    inner = np.arange(2 * height) // 2 * 2  # nodes: inner, leaf, inner, leaf, ... downwards
    parent = np.maximum(np.where(np.arange(2 * height) % 2, inner, inner - 2), 0)
    request = np.where(np.arange(2 * height) % 2, np.arange(2 * height) // 2, -1)
    end = np.where(np.arange(2 * height) % 2, np.arange(2 * height) + 1, 2 * height)
    tree = PrefixTree(parent, np.arange(2 * height) // 2, end, request, height)
    tree.check_integrity()
    steps = path_sum(tree.parent, np.ones(tree.nodes))
    assert steps.max() == height + 1
    flipped, _ = tree.reordered(-np.arange(tree.nodes))  # every leaf after its sibling subtree
    flipped.check_integrity()
    assert flipped.leaf_requests.tolist() == list(range(height))[::-1]
