"""The first wave: a sample of the requests that runs first, to learn output lengths from.

The paper (section 5.1) samples 1 % of the requests. Their results are kept, so the only cost is
that they run out of the plan's order: a prefix that they share with others is computed for them and
again when the others come. Where prefixes are long and few requests share each, that is a good part
of all there is to compute, and neighbours are taken together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.lengths.groups import subtree_of
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]

_LEAST = 32
"""Size of the smallest wave; fewer say nothing about lengths that vary. Unproven."""
_LARGE = 32
"""A subtree is large if it has more than one in so many of all requests. Unproven."""
_TWICE = 0.002
"""Part of the prompt tokens to compute that a sample may add, by prefixes that it computes for
itself. Unproven: of a hundredth drawn one by one it would be 4 to 47 times as much on documents,
prefixes and agents, which were 2.5 to 7 % slower for it, and half of it at most on traces."""
_LEAST_PLACES = 8
"""Fewest places of the tree that a sample is taken from. Unproven."""


def sample_wave(
    tree: PrefixTree, known: ArrayLike, fraction: float = 0.01, *, per_subtree: int = 4
) -> Ints:
    """Requests to run first; any first part of the result is itself spread over the tree.

    The requests of the tree whose length is not known are ordered by subtree and, inside it, by
    prompt length, and taken at equal distances: ``fraction`` of them, at least 32 if there are,
    and at least ``per_subtree`` in each large subtree. Where the prefixes that these share with a
    few others are more than 0.2 % of all tokens to compute, neighbours in the tree are taken
    together, as many as it takes, but from 8 places at least.

    ``known``: (requests,) whether the output's length is known. Deterministic. Raises ValueError
    if the fraction is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    unknown = tree.leaf_requests[~np.asarray(known, dtype=np.bool_)[tree.leaf_requests]]
    count = min(max(int(np.ceil(fraction * unknown.size)), _LEAST), unknown.size)
    if count == 0 or fraction == 0:
        return np.zeros(0, dtype=np.int64)
    large = subtree_of(tree, max(unknown.size // _LARGE, 2))
    wave = _singles(tree, unknown, count)
    together, most = 1, max(count // _LEAST_PLACES, 1) if count < unknown.size else 1
    while together < most and _computed_twice(tree, wave, most) > _TWICE * tree.unique_tokens:
        together = min(2 * together, most)
        wave = _neighbours(unknown, count, together)
    return _with_large(wave, unknown, large, per_subtree, together)


def _computed_twice(tree: PrefixTree, wave: Ints, most: int) -> int:
    """Tokens of the prefixes that requests of the wave share with others, ``most`` in all.

    Those of larger subtrees do not count: no choice of neighbours has all of their requests.
    """
    chosen = np.zeros(tree.requests, dtype=np.int64)
    chosen[wave] = 1
    below = tree.leaf_sum(chosen)
    requests = tree.leaf_end - tree.leaf_start
    partly = (below > 0) & (below < requests) & (requests <= most)
    return int(tree.segment[partly].sum())


def _singles(tree: PrefixTree, unknown: Ints, count: int) -> Ints:
    """``count`` requests at equal distances."""
    prompt = np.zeros(tree.requests, dtype=np.int64)
    prompt[tree.leaf_requests] = tree.depth[tree.leaf_nodes]
    fine = subtree_of(tree, max(unknown.size // count, 2))[unknown]
    return _evenly(unknown[np.lexsort((prompt[unknown], fine))], count)


def _neighbours(unknown: Ints, count: int, together: int) -> Ints:
    """``count`` requests, so many ``together``, at equal distances in the tree's order.

    Of each place the first one comes first, so that their prefixes are computed at once.
    """
    places = -(-count // together)
    middle = (np.arange(places) * 2 + 1) * unknown.size // (2 * places)
    first = np.clip(middle - together // 2, 0, unknown.size - together)[_spread_order(places)]
    return _distinct(unknown[(first + np.arange(together)[:, None]).ravel()])[:count]


def _with_large(wave: Ints, unknown: Ints, large: Ints, least: int, together: int) -> Ints:
    """The wave and what it lacks to have ``least`` requests of each large subtree.

    ``large``: (requests,) the large subtree of each request. ``together``: neighbours are taken if
    it is more than 1.
    """
    parts = [wave]
    of_unknown = large[unknown]
    for subtree in np.unique(of_unknown):
        members = unknown[of_unknown == subtree]
        missing = min(least, members.size)
        if np.isin(members, wave).sum() < missing:
            parts.append((_evenly if together == 1 else _middle)(members, missing))
    return _distinct(np.concatenate(parts))


def _distinct(values: Ints) -> Ints:
    """The values, each where it comes first."""
    return values[np.sort(np.unique(values, return_index=True)[1])]


def _middle(values: Ints, count: int) -> Ints:
    """``count`` of the values, from their middle."""
    first = (values.size - count) // 2
    return values[first : first + count]


def _evenly(values: Ints, count: int) -> Ints:
    """``count`` of the values at equal distances, in an order whose every beginning is spread."""
    places = (np.arange(count) * 2 + 1) * values.size // (2 * count)
    return values[places][_spread_order(count)]


def _spread_order(count: int) -> Ints:
    """0 .. count - 1 by reversed bits (van der Corput): each next one halves a gap."""
    bits = max(int(count - 1).bit_length(), 1)
    number = np.arange(1 << bits)
    reversed_bits = np.zeros_like(number)
    for bit in range(bits):
        reversed_bits |= ((number >> bit) & 1) << (bits - 1 - bit)
    return reversed_bits[reversed_bits < count]
