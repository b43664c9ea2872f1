"""Conditional node split (paper section 5.2, algorithm 2): move outliers, keep the sharing.

Layer sort keeps every subtree together, so a request stands where its subtree's density puts it,
not where its own would. Where that is far off, the outliers are cut off and re-inserted below the
root, where the next layer sort puts them by their own density. Their prefix is then computed a
second time; the total of such tokens stays within a budget.

The paper leaves some room, and this is how it is filled:

- *What is cut.* Children are sorted by density, so a node's outliers are the first or the last
  of its children. They are cut off as one run under one copy of their prefix: neighbours of like
  density meet again at the root anyway, and the run costs the prefix once, not once per request.
  A run of one child is the paper's single leaf or subtree.
- *What counts as an outlier.* The error of a request is the distance between its log density and
  the log density that a plain sort of all requests would put at its place in the scan (places
  measured in seconds of work). A run's gain is its squared errors weighted by work, less the
  spread that stays inside it. In a sorted scan all errors are 0 and nothing is cut, whatever the
  shape of the tree.
- *What the threshold divides by.* Algorithm 2 hands each of k children t / k. With thousands of
  children that share nothing, that leaves no child enough for one split, so the budget is one
  pool here and goes to the cuts with the highest gain per token recomputed.
- *Rounds.* Every cut shifts the places of the others, so a round takes the best quarter of
  the runs and spends half of the budget, then the tree is sorted anew. Each request moves at most
  once. Sort and split repeat until a round brings little, no affordable cut helps, or `_ROUNDS`
  is reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.planner.annotations import (
    Annotations,
    RequestCosts,
    annotate,
    request_costs,
)
from sglang.srt.blendserve.planner.compiled import INTEGERS, VECTOR, compiled
from sglang.srt.blendserve.planner.cost_model import CostModel, density
from sglang.srt.blendserve.planner.layer_sort import layer_sort
from sglang.srt.blendserve.planner.prefix_tree import PrefixTree, preorder
from sglang.srt.blendserve.planner.radix_sort import stable_argsort

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ROUNDS = 16
_LEAST_SHIFT = float(np.log(1.1))
"""A run is cut only if it stands off its place by 10 % of density or more (root mean square)."""
_LEAST_PROGRESS = 0.02
"""A round that takes away a smaller part of the summed squared error of the first sort is the last;
one that takes away none is undone."""
_LOG_DENSITY_LIMIT = 14.0
"""Log densities are cut off at about one to a million either way; 0 and infinity occur."""


@dataclass(frozen=True)
class SortedTree:
    """A layer-sorted tree with its costs."""

    tree: PrefixTree
    costs: RequestCosts
    unsorted: PrefixTree
    order: Ints
    """(nodes,) node of ``unsorted`` at each place of ``tree``."""

    @cached_property
    def annotations(self) -> Annotations:
        """Per node of ``tree``: for reports, the splits need none."""
        return annotate(self.unsorted, self.costs).take(self.order)


def sort_tree(
    tree: PrefixTree,
    output_tokens: Floats,
    cost: CostModel,
    kv_reads: Floats | None = None,
    same: RequestCosts | None = None,
) -> SortedTree:
    """Layer-sort ``tree`` for predicted lengths; arguments as of `request_costs`."""
    costs = request_costs(tree, output_tokens, cost, kv_reads, same)
    by_node = density(tree.leaf_sum(costs.compute_seconds), tree.leaf_sum(costs.memory_seconds))
    in_order, order = layer_sort(tree, by_node)
    return SortedTree(in_order, costs, tree, order)


def split_tree(
    sorted_tree: SortedTree,
    output_tokens: Floats,
    cost: CostModel,
    *,
    keep_sharing: float,
    kv_reads: Floats | None = None,
) -> SortedTree:
    """Cut outliers off ``sorted_tree`` and re-insert them below the root; sorted again.

    ``output_tokens``, ``kv_reads``: those that the tree was sorted for.
    ``keep_sharing``: part of the tokens saved by prefix sharing that must still be saved
    afterwards, 0 to 1. Below the root, a node and its copies then have equal prefixes.
    """
    if not 0 <= keep_sharing <= 1:
        raise ValueError(f"keep_sharing must be between 0 and 1, got {keep_sharing}")
    tree = sorted_tree.tree
    budget = int((1 - keep_sharing) * (tree.prompt_tokens - tree.unique_tokens))
    moved = np.zeros(tree.requests, dtype=np.bool_)
    error, prefix_errors = _errors(sorted_tree)
    least = _LEAST_PROGRESS * error
    for _ in range(_ROUNDS):
        cuts = _choose(sorted_tree, prefix_errors, moved, budget)
        if not cuts.first.size:
            break
        tree = sorted_tree.tree
        parts = _move(tree, cuts)
        candidate = sort_tree(parts, output_tokens, cost, kv_reads, same=sorted_tree.costs)
        new_error, prefix_errors = _errors(candidate)
        if new_error >= error:
            break
        budget -= candidate.tree.unique_tokens - tree.unique_tokens
        leaves, _ = _ranges(tree.leaf_start[cuts.first], tree.leaf_end[cuts.last])
        moved[tree.leaf_requests[leaves]] = True
        sorted_tree, progress, error = candidate, error - new_error, new_error
        if progress < least:
            break
    return sorted_tree


class _Cuts(NamedTuple):
    """k runs of siblings to cut off, each from a node ``first`` to a node ``last`` and its
    subtree; no two of them nest."""

    first: Ints
    last: Ints


def _errors(sorted_tree: SortedTree) -> tuple[float, Floats]:
    """Summed squared error of the scan order, and its prefix sums with those of work.

    Returns the total and an array (4, leaves + 1): prefix sums over the leaves in scan order of
    work, work x log density, work x log density^2 and work x error^2.
    """
    requests = sorted_tree.tree.leaf_requests
    costs = sorted_tree.costs
    work = (costs.compute_seconds + costs.memory_seconds)[requests]
    with np.errstate(divide="ignore"):
        value = np.log(costs.density[requests])
    value = np.clip(value, -_LOG_DENSITY_LIMIT, _LOG_DENSITY_LIMIT)
    ideal = stable_argsort(-value)
    ends = np.cumsum(work[ideal])
    middle = np.cumsum(work) - work / 2
    # The same sums in the same order when the scan is sorted, so errors are exactly 0 then.
    at = _places(ends, middle)
    squares = work * (value - value[ideal[at]]) ** 2
    sums = np.zeros((4, requests.size + 1))
    np.cumsum([work, work * value, work * value**2, squares], axis=1, out=sums[:, 1:])
    return float(sums[3, -1]), sums


def _choose(sorted_tree: SortedTree, sums: Floats, moved: Bools, budget: int) -> _Cuts:
    """The cuts of one round: most gain per recomputed token first, within ``budget`` tokens.

    After the first cut, which may use the whole budget, only half of it is spent.
    """
    tree = sorted_tree.tree
    parent, node = tree.parent, np.arange(tree.nodes)
    cost = tree.depth[parent]
    affordable = (parent != 0) & (cost <= budget)
    moved_before = np.append(0, np.cumsum(moved[tree.leaf_requests]))
    low, high = tree.leaf_start, tree.leaf_end
    runs: list[tuple[Ints, Ints, Ints, Ints]] = []  # first node, last node, low leaf, high leaf
    head = affordable & (high < high[parent])
    runs.append((parent[head] + 1, node[head], low[parent[head]], high[head]))
    tail = affordable & (low > low[parent])
    last_child = _last_child(tree)
    runs.append((node[tail], last_child[parent[tail]], low[tail], high[parent[tail]]))
    found = [
        _best_by_parent(tree, sums, moved_before, first, last, start, end)
        for first, last, start, end in runs
    ]
    first, last, gain = (np.concatenate(columns) for columns in zip(*found, strict=True))
    best = np.lexsort((first, -gain / np.maximum(cost[first], 1)))[: (first.size + 3) // 4]
    first, last = first[best], last[best]
    prices, starts, ends = cost[first], low[first].tolist(), high[last].tolist()
    cheapest = np.minimum.accumulate(prices[::-1])[::-1].tolist()  # of this run and all after it
    taken = bytearray(tree.leaf_nodes.size)
    chosen: list[int] = []
    spent = 0
    for run, price in enumerate(prices.tolist()):
        if chosen and spent + price > budget / 2:
            if spent + cheapest[run] > budget / 2:
                break
            continue
        start, end = starts[run], ends[run]
        if taken.find(1, start, end) >= 0:
            continue
        taken[start:end] = b"\1" * (end - start)
        spent += price
        chosen.append(run)
    return _Cuts(first[chosen], last[chosen])


def _best_by_parent(
    tree: PrefixTree,
    sums: Floats,
    moved_before: Ints,
    first: Ints,
    last: Ints,
    low: Ints,
    high: Ints,
) -> tuple[Ints, Ints, Floats]:
    """Of the runs of each parent the one with the most gain: first node, last node, gain."""
    work, value, squares, error = (row.take(high) - row.take(low) for row in sums)
    spread = np.maximum(squares - value**2 / np.maximum(work, np.finfo(float).tiny), 0)
    gain = error - spread
    good = (gain > work * _LEAST_SHIFT**2) & (moved_before[high] == moved_before[low])
    first, last, gain = first[good], last[good], gain[good]
    best = _last_best(tree.parent[first], gain, tree.nodes)
    return first[best], last[best], gain[best]


@compiled(INTEGERS, INTEGERS, VECTOR, "int64")
def _last_best(group: Ints, gain: Floats, groups: int) -> Ints:
    """Of the rows of each group the last with the most gain; groups from 0 on, ascending.

    ``group``: (k,) below ``groups``; ``gain``: (k,).
    """
    best = np.full(groups, -1)
    for row in range(group.size):
        before = best[group[row]]
        if before < 0 or gain[row] >= gain[before]:
            best[group[row]] = row
    return best[best >= 0]


@compiled(INTEGERS, VECTOR, VECTOR)
def _places(ends: Floats, middle: Floats) -> Ints:
    """(n,) first place of ``ends`` (n,) that is not below each of ``middle`` (n,); both ascend.

    The last place for those beyond all.
    """
    places = np.empty(middle.size, np.int64)
    at = 0
    for row in range(middle.size):
        while at < ends.size - 1 and ends[at] < middle[row]:
            at += 1
        places[row] = at
    return places


def _last_child(tree: PrefixTree) -> Ints:
    """(nodes,) last child of each node; 0 where there is none."""
    last = np.zeros(tree.nodes, dtype=np.int64)
    last[tree.parent[1:]] = np.arange(1, tree.nodes)  # of equal indices numpy keeps the last
    return last


def _ranges(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """All places of k ranges, and of which range each is."""
    sizes = ends - starts
    which = np.repeat(np.arange(starts.size), sizes)
    before = np.cumsum(sizes) - sizes
    return np.arange(which.size) + (starts - before)[which], which


def _move(tree: PrefixTree, cuts: _Cuts) -> PrefixTree:
    """``tree`` with each run of siblings below the root, under a copy of its prefix.

    A single child needs no copy: its own segment then spans the whole prefix.
    """
    starts, ends = cuts.first, tree.subtree_end[cuts.last]
    single = cuts.first == cuts.last
    nodes, of_run = _ranges(starts, ends)
    moved = np.zeros(tree.nodes, dtype=np.bool_)
    moved[nodes] = True
    run = np.full(tree.nodes, -1)
    run[nodes] = of_run
    stays = np.append(0, np.cumsum(~moved[tree.leaf_nodes]))
    keep = moved | (stays[tree.leaf_end] > stays[tree.leaf_start])
    keep[0] = True
    # New numbering, not yet in preorder: the kept nodes, then one copy of a prefix per run.
    place = np.cumsum(keep) - 1
    copies = np.flatnonzero(~single)
    copy_of_run = np.zeros(starts.size, dtype=np.int64)
    copy_of_run[copies] = keep.sum() + np.arange(copies.size)
    top_of_run = moved & ~moved[tree.parent]  # runs do not nest
    parent = np.where(top_of_run, copy_of_run[run], place[tree.parent])[keep]
    here = np.append(0, np.cumsum(keep & ~moved))
    everything = tree.subtree_end - np.arange(tree.nodes)
    size = np.where(moved, everything, here[tree.subtree_end] - here[:-1])[keep]
    size = np.append(size, 1 + (ends - starts)[copies])
    parent = np.append(parent, np.zeros(copies.size, dtype=np.int64))
    depth = np.append(tree.depth[keep], tree.depth[tree.parent[starts[copies]]])
    request = np.append(tree.request[keep], np.full(copies.size, -1))
    size[0] = size.size
    order = np.empty(size.size, dtype=np.int64)
    new_place = preorder(parent, size)
    order[new_place] = np.arange(size.size)
    return PrefixTree(
        parent=new_place[parent[order]],
        depth=depth[order],
        subtree_end=np.arange(size.size) + size[order],
        request=request[order],
        requests=tree.requests,
    )
