"""The first wave: a sample of the requests that runs first, to learn output lengths from.

The paper (section 5.1) samples 1 % of the requests. Their results are kept, so the only cost is
that they run out of the plan's order.
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


def sample_wave(
    tree: PrefixTree,
    max_tokens: ArrayLike,
    known: ArrayLike,
    fraction: float = 0.01,
    *,
    per_subtree: int = 4,
    max_tokens_budget: float = np.inf,
    expected_tokens: float = 256.0,
) -> Ints:
    """Requests to run first; any first part of the result is itself spread over the tree.

    The requests of the tree whose length is not known are ordered by subtree and, inside it, by
    prompt length, and taken at equal distances: ``fraction`` of them, at least 32 if there are,
    and at least ``per_subtree`` in each large subtree. The wave ends before its predicted tokens
    (prompt, and ``expected_tokens`` or the cap of output each) exceed ``max_tokens_budget``, but
    has at least one request.

    ``max_tokens``: (requests,) caps, tokens; ``known``: (requests,) whether the output is exactly
    that long. Deterministic. Raises ValueError if the fraction is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    limit = np.asarray(max_tokens, dtype=np.int64)
    unknown = tree.leaf_requests[~np.asarray(known, dtype=np.bool_)[tree.leaf_requests]]
    count = min(max(int(np.ceil(fraction * unknown.size)), _LEAST), unknown.size)
    if count == 0 or fraction == 0:
        return np.zeros(0, dtype=np.int64)
    prompt = np.zeros(tree.requests, dtype=np.int64)
    prompt[tree.leaf_requests] = tree.depth[tree.leaf_nodes]
    distance = max(unknown.size // count, 2)
    fine = subtree_of(tree, distance)[unknown]
    large = subtree_of(tree, max(unknown.size // _LARGE, 2))[unknown]
    order = np.lexsort((prompt[unknown], fine))
    unknown, large = unknown[order], large[order]
    wave = _evenly(unknown, count)
    extra = [wave]
    for subtree in np.unique(large):
        members = unknown[large == subtree]
        if np.isin(members, wave).sum() < per_subtree:
            extra.append(_evenly(members, min(per_subtree, members.size)))
    chosen = np.concatenate(extra)
    chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])]
    output = np.where(
        limit[chosen] > 0, np.minimum(limit[chosen], expected_tokens), expected_tokens
    )
    within = int(np.searchsorted(np.cumsum(prompt[chosen] + output), max_tokens_budget, "right"))
    return chosen[: max(within, 1)]


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
