"""A model of SGLang's radix cache for the fast step model: KV slots, prefix hits and eviction.

Slots are held by requests in flight (their own tokens), by shared prefixes that some request in
flight uses (locked), and by what is left behind: finished requests and unused prefixes, which are
evicted least recently used first, or, ``plan_aware``, what no waiting request needs first.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree


class _Shape:
    """A prefix tree as lists, whose entries are read one by one all the time."""

    def __init__(self, tree: PrefixTree) -> None:
        self.segment: list[int] = tree.segment.tolist()
        self.depth: list[int] = tree.depth.tolist()
        self.parent: list[int] = tree.parent.tolist()
        leaf = np.zeros(tree.requests, dtype=np.int64)
        leaf[tree.leaf_requests] = tree.leaf_nodes
        self.leaf: list[int] = leaf.tolist()
        self.paths: dict[int, list[int]] = {}


class PrefixCacheModel:
    """The shared inner nodes of a prefix tree, cached or not, and all KV slots."""

    def __init__(
        self,
        tree: PrefixTree,
        slots: int,
        *,
        plan_aware: bool = False,
        like: PrefixCacheModel | None = None,
    ) -> None:
        """``like``: another cache over the same tree, with which what does not change is shared."""
        self.slots = slots
        self.plan_aware = plan_aware
        self._shape: _Shape = _Shape(tree) if like is None else like._shape
        self._segment, self._depth = self._shape.segment, self._shape.depth
        self._parent, self._leaf = self._shape.parent, self._shape.leaf
        self._paths = self._shape.paths
        self._waiting: list[int] = (tree.leaf_end - tree.leaf_start).tolist()
        self._cached = np.zeros(tree.nodes, dtype=np.bool_).tolist()
        self._users = [0] * tree.nodes
        # Unused nodes by the time of their last use. Those that nobody waits for are kept apart
        # where the plan is known; while a node is unused its waiting requests do not change.
        self._unused: OrderedDict[int, int] = OrderedDict()
        self._unneeded: OrderedDict[int, int] = OrderedDict()
        self._finished: deque[tuple[int, int]] = deque()
        self.own_tokens = 0
        """Slots of requests in flight besides shared prefixes."""
        self.locked_tokens = 0
        """Slots of shared prefixes that requests in flight use."""
        self.evictable = 0
        self.clock = 0

    @property
    def used(self) -> int:
        """Slots of requests in flight and of the prefixes they use: they cannot be had now."""
        return self.own_tokens + self.locked_tokens

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return self.slots - self.used - self.evictable

    def path(self, request: int) -> list[int]:
        """The shared nodes above a request, deepest first."""
        above = self._parent[self._leaf[request]]
        path = self._paths.get(above)
        if path is None:
            path, node = [], above
            while node:
                path.append(node)
                node = self._parent[node]
            self._paths[above] = path
        return path

    def hit(self, request: int) -> int:
        """Cached tokens of the request's prompt."""
        node = self._parent[self._leaf[request]]
        while node and not self._cached[node]:
            node = self._parent[node]
        return self._depth[node]

    def idle(self, request: int) -> int:
        """Cached tokens of the request's prompt that no request in flight uses."""
        nodes = self.path(request)
        return sum(self._segment[n] for n in nodes if self._cached[n] and not self._users[n])

    def take(self, tokens: int) -> bool:
        """Take slots for requests in flight, evicting what must go; False if there are too few."""
        if tokens > self.slots - self.used:
            return False
        self.own_tokens += tokens
        self._evict(-self.free)
        return True

    def lock(self, request: int) -> int:
        """Lock the cached part of a request's prefix; return its length, tokens."""
        hit = self.hit(request)
        for node in self.path(request):
            self._waiting[node] -= 1
            if self._cached[node]:
                self._lock(node)
        return hit

    def unlock(self, request: int, hit: int) -> None:
        """Undo `lock` for a request that could not start or is retracted before `insert`."""
        for node in self.path(request):
            self._waiting[node] += 1
            if self._depth[node] <= hit:
                self._release(node)

    def reach(self, request: int, tokens: int) -> int:
        """Depth of the deepest shared node that lies in the first ``tokens`` of the request."""
        for node in self.path(request):
            if self._depth[node] <= tokens:
                return self._depth[node]
        return 0

    def insert(self, request: int, hit: int, computed: int) -> int:
        """Share the first ``computed`` tokens of a request's prompt beyond its ``hit``.

        Returns its own tokens given up.
        """
        given = 0
        for node in self.path(request):
            if not hit < self._depth[node] <= computed:
                continue
            given += self._segment[node]
            if not self._cached[node]:
                self._cached[node] = True
                self.evictable += self._segment[node]
                self._unused[node] = self.clock
            self._lock(node)
        self.own_tokens -= given
        return given

    def finish(self, request: int, own: int) -> None:
        """End a request: its ``own`` tokens and its prefix stay until they are evicted."""
        self.own_tokens -= own
        self.evictable += own
        self._finished.append((self.clock, own))
        for node in self.path(request):
            self._release(node)

    def retract(self, request: int, own: int) -> None:
        """Retract a request: it loses its ``own`` slots at once and will come back."""
        self.own_tokens -= own
        for node in self.path(request):
            self._waiting[node] += 1
            self._release(node)

    def _lock(self, node: int) -> None:
        if self._users[node] == 0:
            self.locked_tokens += self._segment[node]
            self.evictable -= self._segment[node]
            if self._unused.pop(node, None) is None:
                del self._unneeded[node]
        self._users[node] += 1

    def _release(self, node: int) -> None:
        self._users[node] -= 1
        if self._users[node] == 0:
            self.locked_tokens -= self._segment[node]
            self.evictable += self._segment[node]
            needed = self._waiting[node] > 0 or not self.plan_aware
            (self._unused if needed else self._unneeded)[node] = self.clock

    def _evict(self, tokens: int) -> None:
        while tokens > 0:
            tokens -= self._evict_one()

    def _evict_one(self) -> int:
        nodes = self._unneeded or self._unused
        node = next(iter(nodes), None)
        if self._finished and (
            node is None or self.plan_aware or self._finished[0][0] <= nodes[node]
        ):
            freed = self._finished.popleft()[1]
        else:
            assert node is not None, "nothing left to evict"
            del nodes[node]
            self._cached[node] = False
            freed = self._segment[node]
        self.evictable -= freed
        return freed
