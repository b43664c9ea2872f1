"""Token trees and accepted tokens against plain walks over random trees."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgl_kernel import (
    build_tree_kernel_efficient_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
    reconstruct_indices_from_tree_mask,
    rotate_input_ids_cpu,
    verify_tree_greedy_cpu,
)

FULL_MASK, QLEN_ONLY, BITPACKING = 0, 1, 2


@st.composite
def trees(draw, nodes: int) -> list[int]:
    """The parent of each of ``nodes`` nodes; the root's is -1."""
    return [-1] + [draw(st.integers(0, i - 1)) for i in range(1, nodes)]


@st.composite
def forests(draw) -> list[list[int]]:
    nodes = draw(st.integers(1, 9))
    return draw(st.lists(trees(nodes), min_size=1, max_size=4))


def _path(parents: list[int], node: int) -> list[int]:
    """``node`` and its ancestors, nearest first."""
    path = [node]
    while parents[path[-1]] != -1:
        path.append(parents[path[-1]])
    return path


def _children(parents: list[int], node: int) -> list[int]:
    return [i for i, parent in enumerate(parents) if parent == node]


def _naive_links(forest: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    child = [[(_children(p, i) or [-1])[0] for i in range(len(p))] for p in forest]
    sibling = [[-1] * len(p) for p in forest]
    for b, parents in enumerate(forest):
        for node in range(len(parents)):
            row = _children(parents, node)
            for left, right in itertools.pairwise(row):
                sibling[b][left] = right
    return child, sibling


def _buffers(bs: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    index, child, sibling = (torch.full((bs, n), -1) for _ in range(3))
    return torch.full((bs * n,), -1), index, child, sibling


def _check(forest, lens, positions, index, child, sibling):
    n = len(forest[0])
    want_child, want_sibling = _naive_links(forest)
    depth = [[len(_path(p, i)) - 1 for i in range(n)] for p in forest]
    assert positions.tolist() == [d + s for ds, s in zip(depth, lens, strict=True) for d in ds]
    assert index.flatten().tolist() == list(range(len(forest) * n))
    assert child.tolist() == want_child
    assert sibling.tolist() == want_sibling


def _sees(parents: list[int]) -> torch.Tensor:
    n = len(parents)
    return torch.tensor([[j in _path(parents, i) for j in range(n)] for i in range(n)])


@given(forests(), st.data())
def test_a_tree_mask_gives_back_its_tree(forest, data):
    bs, n = len(forest), len(forest[0])
    lens = data.draw(st.lists(st.integers(0, 9), min_size=bs, max_size=bs))
    positions, index, child, sibling = _buffers(bs, n)
    mask = torch.stack([_sees(p) for p in forest])
    reconstruct_indices_from_tree_mask(
        mask.flatten(), torch.tensor(lens), positions, index, child, sibling, bs, n
    )
    _check(forest, lens, positions, index, child, sibling)


@given(forests(), st.sampled_from([FULL_MASK, QLEN_ONLY]), st.data())
def test_eagle_trees(forest, mode, data):
    """Any tree is an EAGLE selection: give node i the draft index topk * (its parent's beam)."""
    bs, n = len(forest), len(forest[0])
    lens = data.draw(st.lists(st.integers(0, 9), min_size=bs, max_size=bs))
    topk = n
    # Draft index of node i: its parent's beam * topk + i; beam of node i in parent_list: i.
    selected = torch.tensor([[max(p, 0) * topk + i for i, p in enumerate(ps)][1:] for ps in forest])
    selected = selected.reshape(bs, n - 1).to(torch.int64)
    parent_list = torch.cat([torch.full((bs, 1), -1), selected], 1)
    positions, index, child, sibling = _buffers(bs, n)
    size = bs * n * n + (sum(lens) * n if mode == FULL_MASK else 0)
    mask = torch.ones(size, dtype=torch.bool)
    build_tree_kernel_efficient_cpu(
        parent_list, selected, torch.tensor(lens), mask, positions, index, child, sibling,
        topk, n, n, mode,
    )  # fmt: skip
    _check(forest, lens, positions, index, child, sibling)
    rows = iter(mask.split([c for s in lens for c in [n + (s if mode == FULL_MASK else 0)] * n]))
    for parents, before in zip(forest, lens, strict=True):
        for sees in _sees(parents):
            prefix = torch.ones(before if mode == FULL_MASK else 0, dtype=torch.bool)
            assert torch.equal(next(rows), torch.cat([prefix, sees]))


def test_packed_tree_masks_are_refused():
    with pytest.raises(NotImplementedError, match="QLEN_ONLY_BITPACKING"):
        build_tree_kernel_efficient_cpu(*[torch.zeros(1, 1)] * 8, 1, 1, 1, BITPACKING)


@given(forests(), st.integers(1, 6), st.data())
def test_greedy_verification_follows_the_targets_tokens(forest, levels, data):
    bs, n = len(forest), len(forest[0])
    tokens = st.lists(st.integers(0, 2), min_size=bs * n, max_size=bs * n)
    draft = torch.tensor(data.draw(tokens)).view(bs, n)
    target = torch.tensor(data.draw(tokens)).view(bs, n)
    child, sibling = (torch.tensor(x) for x in _naive_links(forest))
    predicts = torch.full((bs * n,), -7, dtype=torch.int32)
    accepted = torch.full((bs, levels), -1, dtype=torch.int32)
    counts = torch.zeros(bs, dtype=torch.int32)
    verify_tree_greedy_cpu(
        predicts=predicts, accept_index=accepted, accept_token_num=counts, candidates=draft,
        retrive_index=torch.arange(bs * n).view(bs, n), retrive_next_token=child,
        retrive_next_sibling=sibling, target_predict=target,
    )  # fmt: skip
    want_predicts = [-7] * (bs * n)
    for b, parents in enumerate(forest):
        path = [0]
        while len(path) < levels:
            fits = [i for i in _children(parents, path[-1]) if draft[b, i] == target[b, path[-1]]]
            if not fits:
                break
            path.append(fits[0])
        assert accepted[b].tolist() == [b * n + i for i in path] + [-1] * (levels - len(path))
        assert counts[b] == len(path) - 1
        for node in path:
            want_predicts[b * n + node] = int(target[b, node])
    assert predicts.tolist() == want_predicts


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=5), st.booleans(), st.data())
def test_rotation_shifts_each_segment(segments, chosen, data):
    flat = [t for s in segments for t in s] + [7, 8]  # padding behind the segments stays
    start = [sum(map(len, segments[:i])) for i in range(len(segments))]
    new = [100 + i for i in range(len(segments))]
    select = None
    if chosen:
        select = [
            a + data.draw(st.integers(0, max(len(s) - 1, 0)))
            for a, s in zip(start, segments, strict=True)
        ]
    got = torch.tensor(flat)
    rotate_input_ids_cpu(
        got,
        torch.tensor(start, dtype=torch.int32),
        torch.tensor([len(s) for s in segments], dtype=torch.int32),
        torch.tensor(new, dtype=torch.int64).view(-1, 1),
        None if select is None else torch.tensor(select, dtype=torch.int64),
    )
    want = list(flat)
    for i, (a, s) in enumerate(zip(start, segments, strict=True)):
        if s:
            want[a : a + len(s) - 1] = s[1:]
            want[a + len(s) - 1 if select is None else select[i]] = new[i]
    assert got.tolist() == want


@given(st.lists(st.integers(-1, 9), max_size=12))
def test_accepted_slots_move_to_the_front(index):
    out = torch.zeros(len(index), dtype=torch.int64)
    fill_accept_out_cache_loc_cpu(torch.tensor(index, dtype=torch.int32), torch.arange(50, 60), out)
    kept = [50 + i for i in index if i != -1]
    assert out.tolist() == kept + [0] * (len(index) - len(kept))


@given(st.lists(st.integers(1, 4), max_size=6))
def test_bonus_tokens_are_the_last_accepted(lens):
    tokens = torch.arange(len(lens) * 4, dtype=torch.int32)
    bonus = torch.zeros(len(lens), dtype=torch.int64)
    fill_bonus_tokens_cpu(tokens, torch.tensor(lens, dtype=torch.int32), bonus, 4)
    assert bonus.tolist() == [4 * i + n - 1 for i, n in enumerate(lens)]
