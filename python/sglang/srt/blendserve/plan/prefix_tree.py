"""The prefix tree (paper section 5.1): a compressed trie over all prompts, as arrays.

Nodes stand in depth-first preorder, so a subtree is a range of nodes and its requests are a
range of leaves. A leaf is one request; an inner node is a prefix that several requests share.
Equal prompts are leaves of length 0 below one inner node. Node 0 is the root: no tokens, its own
parent. All work is whole-array numpy; trees of any depth are fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.compiled import INTEGERS, VECTOR, compiled
from sglang.srt.blendserve.plan.radix_sort import stable_argsort
from sglang.srt.blendserve.plan.trie_build import TrieShape, build_trie

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True)
class PrefixTree:
    """A prefix tree over ``requests`` requests, some of which may be left out of it."""

    parent: Ints
    """(nodes,) parent of each node; smaller than the node, but for the root, which has itself."""
    depth: Ints
    """(nodes,) tokens from the root to the end of the node's segment."""
    subtree_end: Ints
    """(nodes,) one past the last node of each node's subtree."""
    request: Ints
    """(nodes,) index of the request of a leaf; -1 at inner nodes."""
    requests: int
    """Requests in the numbering of ``request``; at least the number of leaves."""

    @classmethod
    def build(
        cls,
        prompts: Sequence[NDArray[np.integer]],
        namespaces: NDArray[np.integer] | None = None,
        start: Ints | None = None,
    ) -> PrefixTree:
        """The tree of ``prompts``: n one-dimensional arrays of token ids (int32).

        ``namespaces``: (n,) integers; requests of different namespaces share nothing (other
        adapters, other cache salts). ``start``: see `build_trie`. Siblings stand in the order of
        their tokens, equal prompts in the order of the input. Raises ValueError if the shapes do
        not fit.
        """
        return cls.from_shape(build_trie(prompts, namespaces, start))

    @classmethod
    def from_shape(cls, shape: TrieShape) -> PrefixTree:
        """Number the nodes of a trie in preorder."""
        inner, leaves = shape.inner_low.size, shape.leaf_request.size
        # Where two inner nodes start alike the larger is the ancestor, then the earlier made.
        preorder = np.lexsort((np.arange(inner), -shape.inner_high, shape.inner_low))
        low = shape.inner_low[preorder]
        place = np.empty(inner, dtype=np.int64)
        place[preorder] = np.arange(inner) + low  # inner nodes and leaves that come before
        leaf_place = np.arange(leaves) + np.searchsorted(low, np.arange(leaves), side="right")
        parent = np.zeros(inner + leaves, dtype=np.int64)
        depth, end, request = np.zeros_like(parent), np.zeros_like(parent), np.zeros_like(parent)
        parent[place] = place[np.maximum(shape.inner_parent, 0)]
        parent[leaf_place] = place[shape.leaf_parent]
        depth[place], depth[leaf_place] = shape.inner_depth, shape.leaf_depth
        end[place] = shape.inner_high + np.searchsorted(low, shape.inner_high, side="left")
        end[:1] = inner + leaves  # also where the root is alone
        end[leaf_place] = leaf_place + 1
        request[place], request[leaf_place] = -1, shape.leaf_request
        return cls(parent, depth, end, request, requests=leaves)

    @property
    def nodes(self) -> int:
        """Number of nodes, inner ones and leaves."""
        return self.parent.size

    @cached_property
    def leaf_nodes(self) -> Ints:
        """(leaves,) node of each leaf, in depth-first order."""
        return np.flatnonzero(self.request >= 0)

    @cached_property
    def leaf_requests(self) -> Ints:
        """(leaves,) request of each leaf, in depth-first order."""
        return self.request[self.leaf_nodes]

    @cached_property
    def leaf_start(self) -> Ints:
        """(nodes,) first leaf below each node, as a place in `leaf_nodes`."""
        is_leaf = self.request >= 0
        return np.cumsum(is_leaf) - is_leaf

    @cached_property
    def leaf_end(self) -> Ints:
        """(nodes,) one past the last leaf below each node."""
        ends: Ints = np.append(self.leaf_start, self.leaf_nodes.size)[self.subtree_end]
        return ends

    @cached_property
    def segment(self) -> Ints:
        """(nodes,) tokens of each node's own segment."""
        return self.depth - self.depth[self.parent]

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, shared prefixes counted for each request."""
        return int(self.depth[self.leaf_nodes].sum())

    @cached_property
    def unique_tokens(self) -> int:
        """Tokens of all segments: what has to be computed when each prefix is computed once."""
        return int(self.segment.sum())

    @property
    def sharing(self) -> float:
        """Share of the prompt tokens that prefix caching saves in depth-first order (paper's s)."""
        return 1 - self.unique_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def subtree_sum(self, values: NDArray[Number]) -> NDArray[Number]:
        """(nodes,) sums of node values (nodes,) over each node's subtree, itself included."""
        sums = np.zeros(self.nodes + 1, dtype=values.dtype)
        np.cumsum(values, out=sums[1:])
        return sums[self.subtree_end] - sums[:-1]

    def leaf_sum(self, values: NDArray[Number]) -> NDArray[Number]:
        """(nodes,) sums of request values (requests,) over the requests below each node."""
        sums = np.zeros(self.leaf_nodes.size + 1, dtype=values.dtype)
        np.cumsum(values[self.leaf_requests], out=sums[1:])
        return sums[self.leaf_end] - sums[self.leaf_start]

    def reordered(self, rank: NDArray[np.number]) -> tuple[PrefixTree, Ints]:
        """The tree with each node's children in ascending order of ``rank`` (nodes,).

        Children of equal rank keep their order. Also returns the (nodes,) order of the nodes:
        ``old_values[order]`` are the values by new node.
        """
        size = self.subtree_end - np.arange(self.nodes)
        place = preorder(self.parent, size, rank)
        order, parent, depth, end, request = np.empty((5, self.nodes), dtype=np.int64)
        _move_nodes(
            *(place, self.parent, self.depth, size, self.request),
            *(order, parent, depth, end, request),
        )
        return PrefixTree(parent, depth, end, request, self.requests), order

    def restricted(self, remaining: Bools) -> PrefixTree:
        """The tree of the requests in the mask (requests,) alone; numbering and order stay."""
        keep_leaf = remaining[self.leaf_requests]
        before = np.append(0, np.cumsum(keep_leaf))
        keep = before[self.leaf_end] > before[self.leaf_start]
        keep[:1] = True
        place = np.append(0, np.cumsum(keep))
        return PrefixTree(
            parent=place[self.parent[keep]],
            depth=self.depth[keep],
            subtree_end=place[self.subtree_end[keep]],
            request=self.request[keep],
            requests=self.requests,
        )

    def check_integrity(self) -> None:
        """Assert that the arrays form one preorder tree with each request in one leaf at most."""
        index = np.arange(self.nodes)
        assert self.parent[0] == 0, "the root must be its own parent"
        assert (self.parent[1:] < index[1:]).all(), "parents must come before their children"
        assert self.subtree_end[0] == self.nodes, "the root must span all nodes"
        assert (index < self.subtree_end[self.parent]).all(), "node outside its parent's subtree"
        assert (self.subtree_end <= self.subtree_end[self.parent]).all(), "subtrees overlap"
        assert (self.segment >= 0).all(), "a segment has negative length"
        leaf = self.request >= 0
        assert (self.subtree_end[leaf] == index[leaf] + 1).all(), "a leaf has children"
        assert np.unique(self.leaf_requests).size == self.leaf_requests.size, "request twice"
        assert (self.leaf_end > self.leaf_start)[1:].all(), "an inner node has no requests"


@compiled(VECTOR, INTEGERS, VECTOR)
def path_sum(parent: Ints, values: Floats) -> Floats:
    """(nodes,) sums of ``values`` from the root (node 0) to each node; any order of nodes.

    Pointer jumping: log2(height) passes, however deep the tree is.
    """
    total, ancestor = values.copy(), parent.copy()
    total[:1] = 0.0
    next_total, next_ancestor = np.empty_like(total), np.empty_like(ancestor)
    jumps = True
    while jumps:
        jumps = False
        for node in range(parent.size):
            above = ancestor[node]
            next_total[node], next_ancestor[node] = total[node], 0
            if above:
                jumps = True
                next_total[node] += total[above]
                next_ancestor[node] = ancestor[above]
        total, next_total = next_total, total
        ancestor, next_ancestor = next_ancestor, ancestor
    for node in range(parent.size):
        total[node] += values[0]
    return total


@compiled("void", *[INTEGERS] * 10)
def _move_nodes(
    place: Ints,
    parent: Ints,
    depth: Ints,
    size: Ints,
    request: Ints,
    new_order: Ints,
    new_parent: Ints,
    new_depth: Ints,
    new_end: Ints,
    new_request: Ints,
) -> None:
    """Fill the ``new`` arrays (nodes,) with each node at its ``place``."""
    for node in range(place.size):
        to = place[node]
        new_order[to], new_parent[to] = node, place[parent[node]]
        new_depth[to], new_end[to], new_request[to] = depth[node], to + size[node], request[node]


def preorder(parent: Ints, size: Ints, rank: NDArray[np.number] | None = None) -> Ints:
    """(nodes,) preorder place of each node, siblings ascending by ``rank``, ties by number.

    ``size``: nodes of each subtree. Node 0 is the root and its own parent; other nodes may stand
    in any order.
    """
    ranked = np.arange(parent.size - 1) if rank is None else stable_argsort(rank[1:])
    return _places(parent, size, ranked + 1)


@compiled(INTEGERS, INTEGERS, INTEGERS, INTEGERS)
def _places(parent: Ints, size: Ints, ranked: Ints) -> Ints:
    """Preorder places as in `preorder`, for the nodes but the root as they are ``ranked``."""
    taken = np.zeros(parent.size, np.int64)  # nodes below each node that have their place
    place = np.zeros(parent.size, np.int64)  # first from the parent's place on
    for node in ranked:
        above = parent[node]
        place[node] = 1 + taken[above]
        taken[above] += size[node]
    for node in range(1, parent.size):
        above = parent[node]
        step = place[node]
        while above > node:  # its own place is not from the root on yet
            step += place[above]
            above = parent[above]
        place[node] = step + place[above]
    return place
