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

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel, density
from sglang.srt.blendserve.plan.annotations import (
    Annotations,
    RequestCosts,
    annotate,
    request_costs,
)
from sglang.srt.blendserve.plan.layer_sort import layer_sort
from sglang.srt.blendserve.plan.outliers import Cuts, choose_cuts, scan_errors
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree, preorder

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ROUNDS = 4
"""Most rounds, as many as the paper's Trace#1 takes: each sorts the whole tree again. With 16, five
of six workloads were as fast to the last step, and one by 0.05 % (simulated)."""
_LEAST_PROGRESS = 0.02
"""A round that takes away a smaller part of the summed squared error of the first sort is the last;
one that takes away none is undone. Unproven: on the four traces even no splits at all lose nothing
(``python benchmark/simulate/studies.py ablations``, "split: none")."""


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
    """Layer-sort ``tree`` for predicted lengths; arguments as in `request_costs`."""
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
    error, prefix_errors = scan_errors(sorted_tree.tree, sorted_tree.costs)
    least = _LEAST_PROGRESS * error
    for _ in range(_ROUNDS):
        cuts = choose_cuts(sorted_tree.tree, prefix_errors, moved, budget)
        if not cuts.first.size:
            break
        tree = sorted_tree.tree
        parts = _move(tree, cuts)
        candidate = sort_tree(parts, output_tokens, cost, kv_reads, same=sorted_tree.costs)
        new_error, prefix_errors = scan_errors(candidate.tree, candidate.costs)
        if new_error >= error:
            break
        budget -= candidate.tree.unique_tokens - tree.unique_tokens
        leaves, _ = _ranges(tree.leaf_start[cuts.first], tree.leaf_end[cuts.last])
        moved[tree.leaf_requests[leaves]] = True
        sorted_tree, progress, error = candidate, error - new_error, new_error
        if progress < least:
            break
    return sorted_tree


def _ranges(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """All places of k ranges, and of which range each is."""
    sizes = ends - starts
    which = np.repeat(np.arange(starts.size), sizes)
    before = np.cumsum(sizes) - sizes
    return np.arange(which.size) + (starts - before)[which], which


def _move(tree: PrefixTree, cuts: Cuts) -> PrefixTree:
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
