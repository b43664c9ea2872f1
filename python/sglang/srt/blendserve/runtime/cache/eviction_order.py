"""In which order the prefix cache gives up its leaves, given when each is needed next.

Never needed first, then the one needed farthest in the future, then by SGLang's own eviction
policy (``--radix-eviction-policy``, least recently used by default). Farthest is measured in the
plan: a leaf's requests come from the front of the scan or from its back, whichever is nearer.

Distances to the front all shrink alike as the scan goes on, and so do those to the back. So the
order among the leaves nearer to the front is that of their scan positions, which stay; likewise at
the back. Two heaps hold them, and only their tops are compared. What else changes a next use, a
request that starts or is aborted, is found out when a leaf is at the top.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang.srt.blendserve.pool.upcoming_use import NextUse, UpcomingUse

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

_STALE = 64
"""Entries of leaves that are gone are cleared away when there are more of them than of others
and than this."""

_AT_ONCE = 8
"""Leaves that are assessed in one go, those first that became leaves first, to find one that
nobody needs."""


class _Entry(NamedTuple):
    """Sorts by what is evicted first. Numbers are unique, so nodes are never compared."""

    key: Any
    recency: Any
    number: int
    node: TreeNode
    next_use: NextUse | None
    returns: int
    """`UpcomingUse.returns` when the next use was found. As long as that is the same, what nobody
    needs stays so."""


class EvictionOrder:
    """The evictable leaves, by when they are needed next."""

    def __init__(self, recency: Callable[[TreeNode], Any]) -> None:
        """``recency``: SGLang's priority of a node; the smallest is evicted first."""
        self._recency = recency
        self._counter = 0
        self.changes = 0
        """How often leaves were added, since the start."""
        self.clear()

    def clear(self) -> None:
        """Forget all leaves."""
        self._fresh: dict[TreeNode, None] = {}
        self._number: dict[TreeNode, int] = {}
        self._unneeded: list[_Entry] = []
        self._front: list[_Entry] = []
        self._back: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._fresh) + len(self._number)

    def __contains__(self, node: TreeNode) -> bool:
        return node in self._fresh or node in self._number

    def add(self, node: TreeNode) -> None:
        """Take in ``node``, an evictable leaf that is new or may be needed at another time."""
        self.changes += 1
        self._number.pop(node, None)
        self._fresh[node] = None

    def comes_next(self, above: TreeNode, evicted: TreeNode) -> bool:
        """Return whether ``above``, whose last child was just ``evicted``, is a leaf of its age.

        Without a look at what became a leaf before: behind a prompt that has ended, the few tokens
        of its output are a leaf, the many of the prompt itself become one when these are gone.
        """
        return above in self._fresh and not self._recency(evicted) < self._recency(above)

    def assess(
        self, node: TreeNode, next_use: NextUse | None, upcoming: UpcomingUse | None
    ) -> None:
        """Give the leaf ``node``, of which ``next_use`` is known, its place in the order now."""
        del self._fresh[node]
        self._push(node, next_use, 0 if upcoming is None else upcoming.returns)

    def discard(self, node: TreeNode) -> None:
        """Forget ``node``, which is no evictable leaf (any more)."""
        self._number.pop(node, None)
        self._fresh.pop(node, None)

    def reassess(self) -> None:
        """Forget when leaves are needed: there is another plan."""
        # By age: every rank of a tensor parallel group must evict in the same order.
        leaves = sorted([*self._fresh, *self._number], key=lambda node: node.id)
        self.clear()
        self._fresh = dict.fromkeys(leaves)

    def pop(
        self,
        look: Callable[[TreeNode], NextUse | None],
        upcoming: UpcomingUse | None,
        *,
        unneeded: bool = False,
    ) -> TreeNode | None:
        """Take out the leaf to evict next and return it; None when there is none.

        ``look``: bring the annotation of a leaf up to date and return when all of it is needed
        next. ``upcoming``: measures distances; None if
        there is no plan, and nothing is needed. ``unneeded``: only one that nobody needs, if one
        is found soon.
        """
        returns = 0 if upcoming is None else upcoming.returns
        while True:
            entry = self._oldest_unneeded()
            if self._fresh and (entry is None or self._recency(self._eldest()) < entry.recency):
                # A few at a time: after a new plan all leaves of a large cache are fresh.
                for node in [*islice(self._fresh, _AT_ONCE)]:
                    self._push(node, look(node), returns)
                    del self._fresh[node]
                if unneeded and self._oldest_unneeded() is None:
                    return None
                continue
            if entry is None and not unneeded:
                entry = self._farthest(upcoming)
            if entry is None:
                return None
            next_use = entry.next_use
            if next_use is not None or entry.returns != returns:
                next_use = look(entry.node)
            if next_use == entry.next_use:
                del self._number[entry.node]
                return entry.node
            self._push(entry.node, next_use, returns)  # the older entry is void from now on

    def _eldest(self) -> TreeNode:
        """Of the leaves that are not assessed yet, the one that became one first."""
        return next(iter(self._fresh))

    def _push(self, node: TreeNode, next_use: NextUse | None, returns: int) -> None:
        self._counter += 1
        self._number[node] = self._counter
        if next_use is None:
            heap, key = self._unneeded, 0
        else:
            heap, key = self._front, -next_use.first
        entry = _Entry(key, self._recency(node), self._counter, node, next_use, returns)
        heapq.heappush(heap, entry)
        if len(heap) > 2 * len(self._number) + _STALE:
            heap[:] = [e for e in heap if self._number.get(e.node) == e.number]
            heapq.heapify(heap)

    def _top(self, heap: list[_Entry]) -> _Entry | None:
        while heap:
            if self._number.get(heap[0].node) == heap[0].number:
                return heap[0]
            heapq.heappop(heap)
        return None

    def _oldest_unneeded(self) -> _Entry | None:
        while (top := self._top(self._unneeded)) is not None:
            recency = self._recency(top.node)
            if recency == top.recency:
                break
            heapq.heapreplace(self._unneeded, top._replace(recency=recency))  # used since
        return top

    def _farthest(self, upcoming: UpcomingUse | None) -> _Entry | None:
        """The top of the two heaps that is needed later, each entry in the heap of its side."""
        if upcoming is None:
            return None
        while (front := self._top(self._front)) is not None:
            to_front, to_back = upcoming.distances(_needed(front))
            if to_front <= to_back:
                break
            heapq.heappop(self._front)
            heapq.heappush(self._back, front._replace(key=_needed(front).last))
        while (back := self._top(self._back)) is not None:
            to_front, to_back = upcoming.distances(_needed(back))
            if to_back < to_front:
                break
            heapq.heappop(self._back)
            heapq.heappush(self._front, back._replace(key=-_needed(back).first))
        front = self._top(self._front)
        if front is None or back is None:
            return front or back
        nearer = min(upcoming.distances(_needed(front))), min(upcoming.distances(_needed(back)))
        return front if nearer[0] >= nearer[1] else back


def _needed(entry: _Entry) -> NextUse:
    assert entry.next_use is not None
    return entry.next_use
