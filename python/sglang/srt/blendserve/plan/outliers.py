"""The outliers of a sorted prefix tree: how far requests stand off their places, what to cut off.

What an outlier is and how runs of them are compared: see `node_split`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.compiled import INTEGERS, VECTOR, compiled
from sglang.srt.blendserve.plan.annotations import RequestCosts
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.radix_sort import stable_argsort

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_LEAST_SHIFT = float(np.log(1.1))
"""A run is cut only if it stands off its place by 10 % of density or more (root mean square).
Unproven."""
_LOG_DENSITY_LIMIT = 14.0
"""Log densities are cut off at about one to a million either way; 0 and infinity occur.
Unproven; no real request comes near it."""


class Cuts(NamedTuple):
    """k runs of siblings to cut off, each from a node ``first`` to a node ``last`` and its
    subtree; no two of them nest."""

    first: Ints
    last: Ints


def scan_errors(tree: PrefixTree, costs: RequestCosts) -> tuple[float, Floats]:
    """Summed squared error of the scan order, and its prefix sums with those of work.

    Returns the total and an array (4, leaves + 1): prefix sums over the leaves in scan order of
    work, work x log density, work x log density^2 and work x error^2.
    """
    requests = tree.leaf_requests
    work = (costs.compute_seconds + costs.memory_seconds)[requests]
    with np.errstate(divide="ignore"):
        value = np.log(costs.density[requests])
    value = np.clip(value, -_LOG_DENSITY_LIMIT, _LOG_DENSITY_LIMIT)
    ideal = stable_argsort(-value)
    ends = np.cumsum(work[ideal])
    middle = np.cumsum(work) - work / 2
    # The same sums in the same order when the scan is sorted, so errors are exactly 0 then.
    at = np.minimum(np.searchsorted(ends, middle), max(requests.size - 1, 0))
    squares = work * (value - value[ideal[at]]) ** 2
    sums = np.zeros((4, requests.size + 1))
    np.cumsum([work, work * value, work * value**2, squares], axis=1, out=sums[:, 1:])
    return float(sums[3, -1]), sums


def choose_cuts(tree: PrefixTree, sums: Floats, moved: Bools, budget: int) -> Cuts:
    """The cuts of one round: most gain per recomputed token first, within ``budget`` tokens.

    ``sums``: those of `scan_errors`. ``moved``: (requests,) which have been moved before.
    After the first cut, which may use the whole budget, only half of it is spent.
    """
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
    return Cuts(first[chosen], last[chosen])


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


def _last_child(tree: PrefixTree) -> Ints:
    """(nodes,) last child of each node; 0 where there is none."""
    last = np.zeros(tree.nodes, dtype=np.int64)
    last[tree.parent[1:]] = np.arange(1, tree.nodes)  # of equal indices numpy keeps the last
    return last
