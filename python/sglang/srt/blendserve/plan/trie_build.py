"""Finds the shared prefixes of many token sequences: the shape of their compressed trie.

Sorts by splitting from the most significant token on, all groups of a level at once: requests
that agree so far form a group; a group moves on by its longest common prefix and is then split
by the next token. Only numpy passes over whole levels, so there is no recursion, little time
under the interpreter lock, and prompts are read only as far as somebody shares them.

Time: O(shared tokens + n log n per level). Memory: 4 bytes a token for the flat copy of the
prompts (freed on return), about 100 bytes a request, and a window of `_BLOCK` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]

_FIRST_WINDOW = 8
"""Tokens compared at first."""
_LAST_WINDOW = 512
"""Most tokens compared at once: a group that agrees on a whole window takes one twice as wide.
Unproven, as `_FIRST_WINDOW`; they change time alone."""
_BLOCK = 1 << 22
"""Tokens gathered at once, which bounds the memory of a comparison."""
_COPY = 4096
"""Prompts copied at once, so that no single call holds the interpreter lock for long."""


@dataclass(frozen=True, slots=True)
class TrieShape:
    """Inner nodes and leaves of a trie, leaves in the order of their tokens.

    A node covers the leaves ``low`` to ``high`` (excluded). Inner node 0 is the root; parents
    come before their children, in no other order.
    """

    leaf_request: Ints
    """(leaves,) request of each leaf; equal prompts stand in the order of the input."""
    leaf_parent: Ints
    """(leaves,) inner node above each leaf."""
    leaf_depth: Ints
    """(leaves,) prompt tokens of each leaf."""
    inner_low: Ints
    """(inner,) first leaf below each inner node."""
    inner_high: Ints
    """(inner,) one past the last leaf below each inner node."""
    inner_parent: Ints
    """(inner,) inner node above each inner node; -1 above the root."""
    inner_depth: Ints
    """(inner,) tokens from the root to the end of each inner node."""


@dataclass(slots=True)
class _Groups:
    """Ranges of leaves, each sharing ``depth`` tokens, below inner node ``parent``."""

    low: Ints
    high: Ints
    depth: Ints
    parent: Ints

    def take(self, chosen: NDArray[np.bool_] | Ints) -> _Groups:
        return _Groups(*(a[chosen] for a in (self.low, self.high, self.depth, self.parent)))

    def rows(self) -> tuple[Ints, Ints]:
        """Leaf positions of all groups, and where each group starts among them."""
        sizes = self.high - self.low
        starts = np.cumsum(sizes) - sizes
        return np.repeat(self.low - starts, sizes) + np.arange(sizes.sum()), starts

    def blocks(self, rows: int) -> Iterator[slice]:
        """Slices of about ``rows`` rows or one group, whichever is more."""
        ends = np.cumsum(self.high - self.low)
        first = 0
        while first < ends.size:
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + rows, side="right")))
            yield slice(first, last)
            first = last


class _Prompts:
    """Flat copy of the prompts, padded so that a window may stick out at the end."""

    def __init__(self, prompts: Sequence[NDArray[np.integer]]) -> None:
        self.length = np.fromiter((len(p) for p in prompts), dtype=np.int64, count=len(prompts))
        ends = np.cumsum(self.length)
        self.start = ends - self.length
        total = int(ends[-1]) if len(prompts) else 0
        self.flat: Tokens = np.zeros(total + _LAST_WINDOW, dtype=np.int32)
        for first in range(0, len(prompts), _COPY):
            part = prompts[first : first + _COPY]
            low, high = self.start[first], ends[first + len(part) - 1]
            np.concatenate(part, out=self.flat[low:high], casting="same_kind")

    def next_token(self, requests: Ints, depth: Ints) -> Ints:
        """Token after ``depth`` tokens of each request; below every token where it has ended."""
        token = self.flat[self.start[requests] + depth].astype(np.int64)
        return np.where(depth < self.length[requests], token, np.iinfo(np.int64).min)


def build_trie(
    prompts: Sequence[NDArray[np.integer]], namespaces: NDArray[np.integer] | None = None
) -> TrieShape:
    """The compressed trie of ``prompts``: n one-dimensional arrays of token ids (paper 5.1).

    ``namespaces``: (n,) integers; requests of different namespaces share nothing. Raises
    ValueError if their shape does not fit.
    """
    count = len(prompts)
    if namespaces is not None and namespaces.shape != (count,):
        raise ValueError(f"namespaces must have shape ({count},), got {namespaces.shape}")
    store = _Prompts(prompts)
    order = np.arange(count, dtype=np.int64)
    leaf_parent = np.zeros(count, dtype=np.int64)
    root = _Groups(*(np.array([v], dtype=np.int64) for v in (0, count, 0, -1)))
    inner = [root]
    known = 1
    pending = _split(store, order, leaf_parent, root, np.zeros(1, dtype=np.int64), namespaces)
    while pending.low.size:
        _extend(store, order, pending)
        inner.append(pending)
        ids = known + np.arange(pending.low.size)
        known += ids.size
        pending = _split(store, order, leaf_parent, pending, ids, None)
    return TrieShape(
        leaf_request=order,
        leaf_parent=leaf_parent,
        leaf_depth=store.length[order],
        inner_low=np.concatenate([g.low for g in inner]),
        inner_high=np.concatenate([g.high for g in inner]),
        inner_parent=np.concatenate([g.parent for g in inner]),
        inner_depth=np.concatenate([g.depth for g in inner]),
    )


def _extend(store: _Prompts, order: Ints, groups: _Groups) -> None:
    """Move each group's depth on to the end of its longest common prefix, in place."""
    active = np.arange(groups.low.size)
    width = _FIRST_WINDOW
    while active.size:
        windows = np.lib.stride_tricks.sliding_window_view(store.flat, width)
        agreed = np.empty(active.size, dtype=np.int64)
        chosen = groups.take(active)
        for block in chosen.blocks(max(1, _BLOCK // width)):
            agreed[block] = _common(store, windows, order, chosen.take(_range(block)))
        groups.depth[active] += agreed
        active = active[agreed == width]
        width = min(2 * width, _LAST_WINDOW)


def _range(block: slice) -> Ints:
    return np.arange(block.start, block.stop)


def _common(store: _Prompts, windows: Tokens, order: Ints, groups: _Groups) -> Ints:
    """Tokens (at most a window) that all members of each group share beyond its depth."""
    width = windows.shape[1]
    rows, starts = groups.rows()
    sizes = groups.high - groups.low
    requests = order[rows]
    at = store.start[requests] + np.repeat(groups.depth, sizes)
    mine = windows[at]
    differs = mine != np.repeat(mine[starts], sizes, axis=0)
    first = np.where(differs.any(axis=1), differs.argmax(axis=1), width)
    left = store.length[requests] - np.repeat(groups.depth, sizes)
    return np.minimum.reduceat(np.minimum(first, left), starts)


def _split(
    store: _Prompts,
    order: Ints,
    leaf_parent: Ints,
    groups: _Groups,
    ids: Ints,
    namespaces: NDArray[np.integer] | None,
) -> _Groups:
    """Sort each group by its next token (in ``order``) and return its subgroups of two or more.

    Requests that stand alone, or end here, become leaves of their group's inner node.
    """
    rows, _ = groups.rows()
    if rows.size == 0:
        return groups.take(np.zeros(0, dtype=np.int64))
    sizes = groups.high - groups.low
    group = np.repeat(np.arange(groups.low.size), sizes)
    token = store.next_token(order[rows], np.repeat(groups.depth, sizes))
    space = np.zeros_like(token) if namespaces is None else namespaces[order[rows]].astype(np.int64)
    by_token = np.lexsort((token, space, group))  # stable: equal prompts keep the input's order
    order[rows] = order[rows[by_token]]
    token, space = token[by_token], space[by_token]
    ended = token == np.iinfo(np.int64).min
    new = np.ones(rows.size, dtype=np.bool_)
    new[1:] = (np.diff(group) != 0) | (np.diff(space) != 0) | (token[1:] != token[:-1]) | ended[1:]
    first = np.flatnonzero(new)
    size = np.diff(first, append=rows.size)
    leaf_parent[rows] = ids[group]  # a later split overwrites this for those that go on
    low, parent = rows[first], group[first]
    return _Groups(low, low + size, groups.depth[parent] + 1, ids[parent]).take(size > 1)
