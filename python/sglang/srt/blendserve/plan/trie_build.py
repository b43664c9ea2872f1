"""Finds the shared prefixes of many token sequences: the shape of their compressed trie.

Sorts by splitting from the most significant token on, all groups of a level at once: requests
that agree so far form a group; a group moves on by its longest common prefix and is then split
by the next token. Only passes over whole levels, in numpy or compiled, so there is no recursion,
little time under the interpreter lock, and prompts are read only as far as somebody shares them.

Time: O(shared tokens + n log n per level). Memory: about 100 bytes a request, and 4 bytes a token
for a flat copy of the prompts (freed on return) unless they are parts of one array already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.compiled import INTEGERS, TOKENS, compiled

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]

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


class _Prompts:
    """The prompts as parts of one array."""

    flat: Tokens
    start: Ints
    """(n,) where each begins in ``flat``."""
    length: Ints
    """(n,) tokens of each."""

    def __init__(self, prompts: Sequence[NDArray[np.integer]], start: Ints | None) -> None:
        self.length = np.fromiter(map(len, prompts), dtype=np.int64, count=len(prompts))
        whole = None if start is None or (start < 0).any() else _one_array(prompts)
        if start is None or whole is None:
            self.flat, self.start = self._copy(prompts)
        else:
            self.flat, self.start = whole, start

    def next_token(self, requests: Ints, depth: Ints) -> Ints:
        """Token after ``depth`` tokens of each request; below every token where it has ended."""
        at = np.minimum(self.start[requests] + depth, self.flat.size - 1)
        token = self.flat[at].astype(np.int64)
        return np.where(depth < self.length[requests], token, np.iinfo(np.int64).min)

    def _copy(self, prompts: Sequence[NDArray[np.integer]]) -> tuple[Tokens, Ints]:
        ends = np.cumsum(self.length)
        start = ends - self.length
        flat: Tokens = np.zeros(int(ends[-1]) + 1 if len(prompts) else 1, dtype=np.int32)
        for first in range(0, len(prompts), _COPY):
            part = prompts[first : first + _COPY]
            low, high = start[first], ends[first + len(part) - 1]
            np.concatenate(part, out=flat[low:high], casting="same_kind")
        return flat, start


def _one_array(prompts: Sequence[NDArray[np.integer]]) -> Tokens | None:
    """The array of int32 that all prompts are views of, as those of a request store are; None if
    there is no such array."""
    bases = {id(base): base for base in map(attrgetter("base"), prompts)}
    if len(bases) != 1:
        return None
    (whole,) = bases.values()
    if not isinstance(whole, np.ndarray) or whole.dtype != np.int32 or whole.ndim != 1:
        return None
    return whole if whole.size and whole.flags.c_contiguous and whole.flags.aligned else None


def build_trie(
    prompts: Sequence[NDArray[np.integer]],
    namespaces: NDArray[np.integer] | None = None,
    start: Ints | None = None,
) -> TrieShape:
    """The compressed trie of ``prompts``: n one-dimensional arrays of token ids (paper 5.1).

    ``namespaces``: (n,) integers; requests of different namespaces share nothing. ``start``: (n,)
    where each prompt begins in the array of int32 that all of them are slices of (without steps),
    which saves a copy of them; -1 where it is not known. Raises ValueError if their shape does not
    fit.
    """
    count = len(prompts)
    if namespaces is not None and namespaces.shape != (count,):
        raise ValueError(f"namespaces must have shape ({count},), got {namespaces.shape}")
    store = _Prompts(prompts, start)
    order = np.arange(count, dtype=np.int64)
    leaf_parent = np.zeros(count, dtype=np.int64)
    root = _Groups(*(np.array([v], dtype=np.int64) for v in (0, count, 0, -1)))
    inner = [root]
    known = 1
    pending = _split(store, order, leaf_parent, root, np.zeros(1, dtype=np.int64), namespaces)
    while pending.low.size:
        agreed = _agreed(
            *(store.flat, store.start, store.length, order),
            *(pending.low, pending.high, pending.depth),
        )
        pending.depth += agreed
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


@compiled(INTEGERS, TOKENS, *[INTEGERS] * 6)
def _agreed(
    flat: Tokens, start: Ints, length: Ints, order: Ints, low: Ints, high: Ints, depth: Ints
) -> Ints:
    """(groups,) tokens that all members of each group share beyond its ``depth``.

    ``flat``, ``start``, ``length``: the prompts. ``order``: the request of each leaf. ``low``,
    ``high``, ``depth``: the groups.
    """
    agreed = np.empty(low.size, np.int64)
    for group in range(low.size):
        first, skip = order[low[group]], depth[group]
        mine, most = start[first] + skip, length[first] - skip
        for leaf in range(low[group] + 1, high[group]):
            request = order[leaf]
            other, most = start[request] + skip, min(most, length[request] - skip)
            at = 0
            while at < most and flat[other + at] == flat[mine + at]:
                at += 1
            most = at
        agreed[group] = most
    return agreed


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
