"""Groups of requests that may have similar output lengths, from coarse to fine.

All that is known of a request before it runs puts it into groups: its job and ``max_tokens``, the
subtrees of the prefix tree it stands in, its prompt length, and its neighbours in the order of
arrival (files are often sorted by source). `lengths.fit` decides from finished requests how much
each of these levels says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]

_CELLS = 32
"""A cell holds at least about one in so many of all requests. Unproven."""
_SMALLEST_CELL = 64
"""Requests of the smallest cell; fewer cannot choose a strength of their own. Unproven."""
_TREE_STEP = 4
"""Ratio of the subtree sizes of successive tree levels. Unproven."""
_PROMPT_BINS = (4, 16, 64)
"""Numbers of prompt length bins in a cell, coarse to fine. Unproven."""
_ARRIVAL_BLOCKS = (1024, 256, 64, 16, 4)
"""Requests in a block of arrivals, coarse to fine. Unproven."""


_DENSE = 8
"""Values are counted, and not sorted, if they lie in a range of so many times their number. It
changes time alone."""


@dataclass(frozen=True, slots=True)
class Level:
    """One partition of the requests."""

    name: str
    group: Ints
    """(n,) group of each request, from 0."""
    groups: int
    cell: Ints
    """(groups,) cell of each group; one of several where the groups do not lie inside cells."""
    by_cell: bool
    """Whether the groups lie inside cells, so that each cell may trust the level differently."""


@dataclass(frozen=True, slots=True)
class LengthGroups:
    """All partitions of n requests, coarse to fine."""

    levels: tuple[Level, ...]
    cell: Ints
    """(n,) cell of each request: a large group of one origin (job, max_tokens, subtree)."""
    cells: int

    @classmethod
    def build(
        cls, prompt_tokens: Ints, max_tokens: Ints, job: Ints, tree: PrefixTree | None
    ) -> LengthGroups:
        """Groups of n requests; arguments as in `LengthEstimator`, all of shape (n,)."""
        n = prompt_tokens.size
        jobs = _number(job)
        stated = _number(jobs, max_tokens)
        parts: list[tuple[str, Ints, bool]] = [
            ("job", jobs, False),
            ("max_tokens", stated, False),
        ]
        smallest = max(n // _CELLS, _SMALLEST_CELL)
        cell = _large(stated, np.zeros_like(stated), smallest)
        if tree is not None:
            subtree = subtree_of(tree, smallest)
            cell = _large(_number(subtree, stated), subtree, smallest)
            size = n // _TREE_STEP
            while size >= 2:
                part = subtree_of(tree, size)
                parts.append((f"subtree of {size}", _number(part), False))
                size = size // _TREE_STEP if size > _TREE_STEP else size - 2
        parts += [
            (f"prompt length in {bins}", _number(cell, quantile), True)
            for bins, quantile in _quantiles(cell, prompt_tokens)
        ]
        parts.append(("prompt length", _number(cell, prompt_tokens), True))
        place = _place_in(cell)
        parts += [
            (f"arrival in blocks of {block}", _number(cell, place // block), True)
            for block in _ARRIVAL_BLOCKS
        ]
        return cls(_useful(parts, cell), cell, int(cell.max(initial=-1)) + 1)


def subtree_of(tree: PrefixTree, size: int) -> Ints:
    """(requests,) node of the smallest subtree with at least ``size`` requests around each.

    Requests in no such subtree, and those that are not in the tree, get the root, 0.
    """
    nodes = np.arange(tree.nodes)
    up = np.where(tree.leaf_end - tree.leaf_start >= size, nodes, tree.parent)
    while True:  # pointer jumping: log2(height) passes
        further = up[up]
        if np.array_equal(further, up):
            break
        up = further
    found = np.zeros(tree.requests, dtype=np.int64)
    found[tree.leaf_requests] = up[tree.leaf_nodes]
    return found


def _number(*keys: Ints) -> Ints:
    """(n,) number of each distinct combination of keys (n,), from 0."""
    number = _compact(keys[0])
    for key in keys[1:]:
        place = _compact(key)
        number = _compact(number * (int(place.max(initial=0)) + 1) + place)
    return number


def _compact(values: Ints) -> Ints:
    """(n,) number of each distinct value (n,), from 0, smaller ones first."""
    if not values.size:
        return values
    low, high = int(values.min()), int(values.max())
    if high - low > _DENSE * values.size:
        return np.unique(values, return_inverse=True)[1]
    there = np.zeros(high - low + 1, dtype=np.int64)  # without a sort
    there[values - low] = 1
    return (np.cumsum(there) - 1)[values - low]


def _large(fine: Ints, coarse: Ints, smallest: int) -> Ints:
    """(n,) the fine group where it is large enough, else the coarse one, else one for the rest."""
    keep = np.bincount(fine)[fine] >= smallest
    label = np.where(keep, fine + 1, 0)
    rest = _number(label, np.where(keep, 0, coarse + 1))
    keep = np.bincount(rest)[rest] >= smallest
    return _number(np.where(keep, rest + 1, 0))


def _quantiles(cell: Ints, prompt_tokens: Ints) -> list[tuple[int, Ints]]:
    """(n,) quantile bin of each request's prompt length in its cell; equal lengths together."""
    order = np.lexsort((prompt_tokens, cell))
    sorted_cell, sorted_prompt = cell[order], prompt_tokens[order]
    new = np.ones(cell.size, dtype=np.bool_)
    new[1:] = (np.diff(sorted_cell) != 0) | (np.diff(sorted_prompt) != 0)
    first = np.flatnonzero(new)[np.cumsum(new) - 1]
    counts = np.bincount(cell)
    rank = np.empty(cell.size, dtype=np.int64)
    rank[order] = first - (np.cumsum(counts) - counts)[sorted_cell]
    return [(bins, rank * bins // counts[cell]) for bins in _PROMPT_BINS]


def _place_in(cell: Ints) -> Ints:
    """(n,) place of each request among those of its cell, in the order of the input."""
    order = np.argsort(cell, kind="stable")
    counts = np.bincount(cell)
    place = np.empty(cell.size, dtype=np.int64)
    place[order] = np.arange(cell.size) - (np.cumsum(counts) - counts)[cell[order]]
    return place


def _useful(parts: list[tuple[str, Ints, bool]], cell: Ints) -> tuple[Level, ...]:
    """The partitions that are neither trivial nor the same as the one before."""
    levels: list[Level] = []
    for name, group, by_cell in parts:
        groups = int(group.max(initial=-1)) + 1
        if not 1 < groups < group.size:
            continue
        if levels and levels[-1].groups == groups and np.array_equal(levels[-1].group, group):
            continue
        cell_of = np.zeros(groups, dtype=np.int64)
        cell_of[group] = cell
        levels.append(Level(name, group, groups, cell_of, by_cell))
    return tuple(levels)
