"""Who will still come through a prefix, and when: what the prefix cache wants to know of the plan.

A prefix of token ids is a place in the prefix tree, below which stand the requests that begin
with it. Which of them still wait, and who of them comes next, is read off the dual scanner when
it is asked for: nothing is kept up to date per request, so a pool of any size costs a step
nothing here. A query costs some binary searches over the requests below the place.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.planner.prefix_tree import PrefixTree
from sglang.srt.blendserve.planner.scanner import DualScanner

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]


class Place(NamedTuple):
    """Where a sequence of tokens lies in the prefix tree."""

    node: int
    """The node whose segment the shared part ends in; 0 is the root."""
    shared: int
    """How many of the tokens, from the first on, some request begins with."""


class NextUse(NamedTuple):
    """Scan positions of the nearest waiting requests of a set, seen from both ends of the scan."""

    first: int
    """The nearest to the compute-bound end; -1 for a request served before the plan."""
    last: int
    """The nearest to the memory-bound end."""


AT_ONCE = NextUse(-1, -1)
"""The next use of what a request needs that is served before anything from the plan."""

ROOT = Place(0, 0)


class UpcomingUse:
    """Reads the upcoming uses of prefixes off one prefix tree and one scan of its requests."""

    def __init__(
        self,
        tree: PrefixTree,
        scanner: DualScanner,
        prompt: Callable[[int], Tokens],
        namespace: Callable[[int], str],
    ) -> None:
        """``tree``: as `PrefixTree.build` gives it, siblings in the order of their tokens.
        ``prompt``, ``namespace``: of a request of the tree. The root's children may belong to
        several namespaces, each of them a contiguous run."""
        self.tree = tree
        self._prompt = prompt
        self._namespace = namespace
        siblings = np.argsort(tree.parent[1:], kind="stable") + 1
        counts = np.bincount(tree.parent[1:], minlength=tree.nodes)
        self._children = siblings
        self._children_end = np.cumsum(counts)
        self._children_start = self._children_end - counts
        self._runs = self._namespace_runs()
        self._leaf_of = np.full(tree.requests, -1, dtype=np.int64)
        self._leaf_of[tree.leaf_requests] = np.arange(tree.leaf_requests.size)
        self.follow(scanner)

    def follow(self, scanner: DualScanner) -> None:
        """Read from another scan of requests of the same tree (after planning again)."""
        self.scanner = scanner
        self._scan_position = scanner.positions(self.tree.leaf_requests)
        self._below: dict[int, Ints] = {}
        self._ahead: list[int] = []

    def serve_first(self, requests: Iterable[int]) -> None:
        """Name the waiting ``requests`` that are served before the plan (returned ones)."""
        self._ahead = sorted(int(self._leaf_of[request]) for request in requests)

    # --- places ---------------------------------------------------------------------------

    def descend(self, place: Place, depth: int, segment: Tokens | Ints, namespace: str) -> Place:
        """The place of ``depth`` tokens, which is ``place``, with those of ``segment`` appended.

        ``segment``: one-dimensional, any integer type.
        """
        if place.shared < depth:
            return place  # nobody begins with what is already there
        tree = self.tree
        node, shared, end = place.node, depth, depth + segment.size
        while shared < end:
            node_end = int(tree.depth[node])
            if shared == node_end:
                child = self._child(node, int(segment[shared - depth]), namespace)
                if child is None:
                    break
                node, node_end = child, int(tree.depth[child])
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
        while shared > above and self.next_use(node) is None:
            node = int(self.tree.parent[node])
            shared = int(self.tree.depth[node])
        return Place(node, shared)

    def parent(self, node: int) -> int:
        """The node above ``node``; the root's is the root."""
        return int(self.tree.parent[node])

    def depth_above(self, node: int) -> int:
        """Tokens from the root to the start of the node's segment."""
        return int(self.tree.depth[self.tree.parent[node]])

    # --- requests at a place --------------------------------------------------------------

    def next_use(self, node: int) -> NextUse | None:
        """When the waiting requests below ``node`` are due; None if nobody waits."""
        low, high = int(self.tree.leaf_start[node]), int(self.tree.leaf_end[node])
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
        """Places in the scan before this use, from the compute- and the memory-bound end."""
        return use.first - self.scanner.front, self.scanner.back - use.last

    def waiting(self, node: int) -> Ints:
        """(m,) the waiting requests below ``node``: those of the plan, then those served first."""
        planned = self.scanner.still_waiting(self._positions(node))
        low = bisect_left(self._ahead, int(self.tree.leaf_start[node]))
        high = bisect_left(self._ahead, int(self.tree.leaf_end[node]))
        ahead = np.array(self._ahead[low:high], dtype=np.int64)
        return np.concatenate((planned, self.tree.leaf_requests[ahead]))

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
        tree = self.tree
        return self._prompt(int(tree.leaf_requests[tree.leaf_start[node]]))

    def _child(self, node: int, token: int, namespace: str) -> int | None:
        """The child of ``node`` that begins with ``token``."""
        depth = int(self.tree.depth[node])
        if node == 0:
            run = self._runs.get(namespace)
            if run is None:
                return None
            low, high = run
        else:
            low, high = int(self._children_start[node]), int(self._children_end[node])
        end = high
        while low < high:  # prompts that end here stand before all that go on
            middle = (low + high) // 2
            prompt = self._tokens(int(self._children[middle]))
            if prompt.size <= depth or prompt[depth] < token:
                low = middle + 1
            else:
                high = middle
        if low == end:
            return None
        child = int(self._children[low])
        return child if self._tokens(child)[depth] == token else None

    def _namespace_runs(self) -> dict[str, tuple[int, int]]:
        """Where the root's children of each namespace stand among its children."""
        runs: dict[str, tuple[int, int]] = {}
        low, end = int(self._children_start[0]), int(self._children_end[0])
        while low < end:
            name = self._name(low)
            # Gallop to the end of the run: namespaces are few and requests are many.
            step, high = 1, low + 1
            while high < end and self._name(min(high + step, end) - 1) == name:
                high = min(high + step, end)
                step *= 2
            last = min(high + step, end)
            while high < last:
                middle = (high + last) // 2
                if self._name(middle) == name:
                    high = middle + 1
                else:
                    last = middle
            runs[name] = (low, high)
            low = high
        return runs

    def _name(self, child: int) -> str:
        tree = self.tree
        return self._namespace(int(tree.leaf_requests[tree.leaf_start[self._children[child]]]))
