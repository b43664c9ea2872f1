"""The outliers of a sorted prefix tree: how far requests stand off their places, what to cut off.

What an outlier is and how runs of them are compared: see `node_split`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.compiled import INTEGERS, TABLE, VECTOR, compiled
from sglang.srt.blendserve.plan.annotations import RequestCosts
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.radix_sort import stable_argsort

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_LEAST_SHIFT = float(np.log(1.1))
"""A run is cut only if it stands off its place by 10 % of density or more (root mean square).
Unproven."""
_LEAST_SQUARE = _LEAST_SHIFT**2
_TINY = float(np.finfo(np.float64).tiny)
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
    sums = _error_sums(work, value, ideal)
    return float(sums[3, -1]), sums


@compiled(TABLE, VECTOR, VECTOR, INTEGERS)
def _error_sums(work: Floats, value: Floats, ideal: Ints) -> Floats:
    """The prefix sums that `scan_errors` returns.

    ``work``, ``value``: (leaves,) work and log density in scan order; ``ideal``: (leaves,) the
    leaves in the order of a plain sort.
    """
    leaves = work.size
    ends = np.cumsum(work[ideal])
    sums = np.zeros((4, leaves + 1))
    at = 0
    for leaf in range(leaves):
        w, v = work[leaf], value[leaf]
        sums[0, leaf + 1] = sums[0, leaf] + w
        sums[1, leaf + 1] = sums[1, leaf] + w * v
        sums[2, leaf + 1] = sums[2, leaf] + w * (v * v)
        # The same sums in the same order when the scan is sorted, so errors are exactly 0 then.
        middle = sums[0, leaf + 1] - w / 2
        while at < leaves and ends[at] < middle:
            at += 1
        while at > 0 and ends[at - 1] >= middle:
            at -= 1
        error = v - value[ideal[min(at, leaves - 1)]]
        sums[3, leaf + 1] = sums[3, leaf] + w * (error * error)
    return sums


def choose_cuts(tree: PrefixTree, sums: Floats, moved: Bools, budget: int) -> Cuts:
    """The cuts of one round: most gain per recomputed token first, within ``budget`` tokens.

    ``sums``: those of `scan_errors`. ``moved``: (requests,) which have been moved before.
    After the first cut, which may use the whole budget, only half of it is spent.
    """
    moved_before = np.append(0, np.cumsum(moved[tree.leaf_requests]))
    low, high = tree.leaf_start, tree.leaf_end
    runs = (
        _best_runs(tree.parent, tree.depth, low, high, sums, moved_before, budget, from_first)
        for from_first in (True, False)
    )
    first, last, gain = (np.concatenate(columns) for columns in zip(*runs, strict=True))
    cost = tree.depth[tree.parent[first]]
    best = np.lexsort((first, -gain / np.maximum(cost, 1)))[: (first.size + 3) // 4]
    first, last = first[best], last[best]
    prices, starts, ends = cost[best], low[first].tolist(), high[last].tolist()
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


@compiled(
    f"Tuple(({INTEGERS}, {INTEGERS}, {VECTOR}))",
    *(INTEGERS, INTEGERS, INTEGERS, INTEGERS, TABLE, INTEGERS, "int64", "boolean"),
)
def _best_runs(
    parent: Ints,
    depth: Ints,
    low: Ints,
    high: Ints,
    sums: Floats,
    moved_before: Ints,
    budget: int,
    from_first: bool,
) -> tuple[Ints, Ints, Floats]:
    """The run of children of each node with the most gain: first node, last node, gain (k,).

    Runs begin with the node's first child if ``from_first``, otherwise they end with its last.
    ``parent``, ``depth``, ``low``, ``high``: (nodes,) the tree and the leaves below each node.
    ``moved_before``: (leaves + 1,) how many of the leaves before each have been moved.
    """
    last_child = np.zeros(parent.size, np.int64)
    best, most = np.full(parent.size, -1), np.zeros(parent.size)
    for node in range(1, parent.size):
        above = parent[node]
        last_child[above] = node
        if above == 0 or depth[above] > budget:
            continue
        if from_first:
            start, end = low[above], high[node]
        else:
            start, end = low[node], high[above]
        if start == low[above] and end == high[above]:
            continue  # all children
        work, value = sums[0, end] - sums[0, start], sums[1, end] - sums[1, start]
        squares, error = sums[2, end] - sums[2, start], sums[3, end] - sums[3, start]
        gain = error - max(squares - value * value / max(work, _TINY), 0.0)
        worth = gain > work * _LEAST_SQUARE and moved_before[end] == moved_before[start]
        if worth and (best[above] < 0 or gain >= most[above]):
            best[above], most[above] = node, gain
    parents = np.flatnonzero(best >= 0)
    if from_first:
        return parents + 1, best[parents], most[parents]
    return best[parents], last_child[parents], most[parents]
