"""Who will still come through a prefix, and when: what the prefix cache wants to know of the plan.

A prefix of token ids is a place in the prefix tree, below which stand the requests that begin
with it. Which of them still wait, and who of them comes next, is read off the dual scanner when
it is asked for: nothing is kept up to date per request, so a pool of any size costs a step
nothing here. A query costs some binary searches over the requests below the place.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.scanner import DualScanner

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Tokens = NDArray[np.int32]


class Place(NamedTuple):
    """Where a sequence of tokens lies in the prefix tree."""

    node: int
    """The node whose segment the shared part ends in; 0 is the root."""
    shared: int
    """How many of the tokens, from the first on, some request begins with."""


class NextUse(NamedTuple):
    """Scan positions of the nearest waiting requests of a set, seen from both sides of the scan."""

    first: int
    """Position nearest to the compute-bound side; -1 for a request served before the plan."""
    last: int
    """Position nearest to the memory-bound side."""


AT_ONCE = NextUse(-1, -1)
"""The next use of what a request needs that is served before anything from the plan."""

ROOT = Place(0, 0)


class UpcomingUse:
    """Reads the upcoming uses of prefixes off one prefix tree and one scan of its requests."""

    def __init__(
        self, tree: PrefixTree, prompts: Sequence[Tokens], namespaces: Sequence[str]
    ) -> None:
        """``tree``: as `PrefixTree.build` gives it, siblings in the order of their tokens.
        ``prompts``, ``namespaces``: of its requests. The root's children may belong to several
        namespaces, each of them a contiguous run."""
        self.tree = tree
        self.returns = 0
        """How often requests have come back to wait before the plan: what nobody needed before
        may be needed since."""
        self._prompts = prompts
        siblings = np.argsort(tree.parent[1:], kind="stable") + 1
        counts = np.bincount(tree.parent[1:], minlength=tree.nodes)
        ends = np.cumsum(counts)
        # Single numbers are read all the time: from a memoryview at a third of an array's cost.
        self._children_start, self._children_end = (ends - counts).data, ends.data
        self._children = siblings.data
        self._depth, self._parent = tree.depth.data, tree.parent.data
        self._leaf_start, self._leaf_end = tree.leaf_start.data, tree.leaf_end.data
        self._sample = _some_request(tree).data
        self._first_token = self._first_tokens(siblings).data
        self._runs = self._namespace_runs(namespaces)
        self._leaf_of = np.full(tree.requests, -1, dtype=np.int64)
        self._leaf_of[tree.leaf_requests] = np.arange(tree.leaf_requests.size)
        self._ahead: list[int] = []
        self.follow(DualScanner(np.zeros(0, dtype=np.int64)))

    def follow(self, scanner: DualScanner) -> None:
        """Read from another scan of requests of the same tree (after planning again)."""
        self.scanner = scanner
        self._scan_position = scanner.positions(self.tree.leaf_requests)
        self._below: dict[int, Ints] = {}
        self._witness: dict[int, int] = {}  # by node: where somebody below it was seen to wait

    def serve_first(self, requests: Iterable[int]) -> None:
        """Name the waiting ``requests`` that are served before the plan (returned ones)."""
        before = self._ahead
        self._ahead = sorted(int(self._leaf_of[request]) for request in requests)
        if not set(before).issuperset(self._ahead):
            self.returns += 1

    # --- places ---------------------------------------------------------------------------

    def descend(self, place: Place, depth: int, segment: Tokens | Ints, namespace: str) -> Place:
        """The place of ``depth`` tokens, which is ``place``, with those of ``segment`` appended.

        ``segment``: one-dimensional, any integer type.
        """
        if place.shared < depth:
            return place  # nobody begins with what is already there
        node, shared, end = place.node, depth, depth + segment.size
        while shared < end:
            node_end = self._depth[node]
            if shared == node_end:
                child = self._child(node, int(segment[shared - depth]), namespace)
                if child is None:
                    break
                node, node_end = child, self._depth[child]
            stop = min(node_end, end)
            differ = self._tokens(node)[shared:stop] != segment[shared - depth : stop - depth]
            first = int(differ.argmax())
            if differ[first]:
                shared += first
                break
            shared = stop
        return Place(node, shared)

    def used(self, place: Place, above: int = 0) -> Place:
        """How far waiting requests share the tokens at ``place``, and below which node they stand.

        Looks no higher than ``above`` tokens: a result that shares no more than these says that
        nobody needs the tokens behind them.
        """
        node, shared = place
        while shared > above and not self.needed(node):
            node = self._parent[node]
            shared = self._depth[node]
        return Place(node, shared)

    def parent(self, node: int) -> int:
        """The node above ``node``; the root's is the root."""
        return self._parent[node]

    def depth_above(self, node: int) -> int:
        """Tokens from the root to the start of the node's segment."""
        return self._depth[self._parent[node]]

    def still_shared(self, request: int) -> int:
        """How many of its own first tokens ``request`` has in common with waiting requests."""
        node = int(self.tree.leaf_nodes[self._leaf_of[request]])
        return self.used(Place(node, self._depth[node])).shared

    # --- requests at a place --------------------------------------------------------------

    def needed(self, node: int) -> bool:
        """Whether somebody below ``node`` waits."""
        witness = self._witness.get(node)
        if witness is not None and self.scanner.waits_at(witness):
            return True
        use = self.next_use(node)
        if use is None:
            return False
        if use is not AT_ONCE:
            # Of the two, the one that will wait longer.
            to_front, to_back = self.distances(use)
            self._witness[node] = use.first if to_front > to_back else use.last
        return True

    def next_use(self, node: int) -> NextUse | None:
        """When the waiting requests below ``node`` are due; None if nobody waits."""
        low, high = self._leaf_start[node], self._leaf_end[node]
        if self._ahead:
            at = bisect_left(self._ahead, low)
            if at < len(self._ahead) and self._ahead[at] < high:
                return AT_ONCE
        if high - low == 1:  # as for most: a request of its own
            position = int(self._scan_position[low])
            return NextUse(position, position) if self.scanner.waits_at(position) else None
        span = self.scanner.waiting_span(self._positions(node))
        return None if span is None else NextUse(*span)

    def distances(self, use: NextUse) -> tuple[int, int]:
        """Places in the scan before this use, from the compute- and the memory-bound side."""
        return use.first - self.scanner.front, self.scanner.back - use.last

    def parting(self, node: int, above: int) -> int:
        """The deepest point above ``node`` where requests due at another time part from it.

        In tokens from the root; looks no higher than ``above`` tokens, and is that if there is
        none.
        """
        use, depth = self.next_use(node), self.depth_above(node)
        while depth > above:
            node = self._parent[node]
            if self.next_use(node) != use:
                return depth
            depth = self.depth_above(node)
        return above

    def line(self) -> tuple[Bools, Ints]:
        """(leaves,) twice: whether the request at each leaf of the tree waits, and how many
        requests of the plan come before it, from the nearer side; 0 if it is served first."""
        scanner, position = self.scanner, self._scan_position
        waits = scanner.waiting_at(position)
        before = np.minimum(position - scanner.front, scanner.back - position)
        ahead = np.array(self._ahead, dtype=np.int64)
        waits[ahead], before[ahead] = True, 0
        return waits, before

    # --- inside ---------------------------------------------------------------------------

    def _positions(self, node: int) -> Ints:
        """(k,) ascending scan positions of the planned requests below ``node``."""
        found = self._below.get(node)
        if found is None:
            below = self._scan_position[self.tree.leaf_start[node] : self.tree.leaf_end[node]]
            found = np.sort(below[below >= 0])
            self._below[node] = found
        return found

    def _tokens(self, node: int) -> Tokens:
        """The prompt of some request below ``node``."""
        return self._prompts[self._sample[node]]

    def _child(self, node: int, token: int, namespace: str) -> int | None:
        """The child of ``node`` that begins with ``token``."""
        if node == 0:
            run = self._runs.get(namespace)
            if run is None:
                return None
            low, end = run
        else:
            low, end = self._children_start[node], self._children_end[node]
        at = bisect_left(self._first_token, token, low, end)
        return self._children[at] if at < end and self._first_token[at] == token else None

    def _first_tokens(self, siblings: Ints) -> Ints:
        """(nodes - 1,) first token of each of ``siblings``' segments; -1 where it is empty."""
        tree = self.tree
        above = tree.depth[tree.parent[siblings]]
        some = _some_request(tree)[siblings]
        found = np.full(siblings.size, -1, dtype=np.int64)
        filled = np.flatnonzero(tree.depth[siblings] > above)
        for at, request, depth in zip(
            filled.tolist(), some[filled].tolist(), above[filled].tolist(), strict=True
        ):
            found[at] = self._prompts[request][depth]
        return found

    def _namespace_runs(self, namespaces: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Where the root's children of each namespace stand among its children."""
        runs: dict[str, tuple[int, int]] = {}
        for at in range(self._children_start[0], self._children_end[0]):
            name = namespaces[self._sample[self._children[at]]]
            runs[name] = (runs[name][0] if name in runs else at, at + 1)
        return runs


def _some_request(tree: PrefixTree) -> Ints:
    """(nodes,) a request below each node."""
    if not tree.leaf_requests.size:
        return np.full(tree.nodes, -1, dtype=np.int64)
    return tree.leaf_requests[np.minimum(tree.leaf_start, tree.leaf_requests.size - 1)]
