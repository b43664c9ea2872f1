"""How much of each prefix of the plan is cached, and what waits for it: for page and metrics.

Whatever the cache holds of the plan is the beginning of segments of the plan's prefix tree. One
number for each of them is kept up to date when nodes of the cache are annotated or evicted; their
splits change nothing. Who waits below each of them is summed up for all at once when it is asked
for: some milliseconds with 100,000 requests, whatever the size of the cache.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.scan_order import Plan
from sglang.srt.blendserve.pool.upcoming_use import UpcomingUse
from sglang.srt.blendserve.runtime.cache.node_annotation import Annotation, annotation_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_SOON, _NEXT = 100, 1000


class CacheUse(NamedTuple):
    """What the prefix cache holds, in tokens, by what the plan says of it.

    Waiting requests are those of the plan and returned ones; requests that have arrived since the
    plan was made count from the next plan on.
    """

    soon: int = 0
    """Needed by one of the next 100 requests of the plan, counted from the nearer side."""
    next: int = 0
    """Needed by one of the next 1,000, but none of the next 100."""
    later: int = 0
    """Needed by a waiting request that comes later."""
    unneeded: int = 0
    """No waiting request begins with them."""
    unknown: int = 0
    """Not looked at since the plan was made."""
    compute_bound: int = 0
    """Of the needed ones, those whose waiting requests take more compute than memory time."""
    memory_bound: int = 0
    """Of the needed ones, those whose waiting requests take no more compute than memory time."""
    hits: int = 0
    """Prompt tokens of waiting requests that are cached now: each needed token as often as it is
    needed."""


class CachedPrefixes:
    """The tokens of a cache's nodes, by where they lie in the plan's prefix tree."""

    def __init__(self) -> None:
        self._upcoming: UpcomingUse | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all nodes."""
        self._unknown: dict[Hashable, None] = {}
        self._known: dict[Hashable, None] = {}
        self._begin()

    def follow(self, upcoming: UpcomingUse | None) -> None:
        """Count by ``upcoming`` from now on. With another tree than before, no node is known."""
        if upcoming is self._upcoming:
            return
        self._upcoming = upcoming
        self._unknown |= self._known
        self._known = {}
        self._begin()

    def _begin(self) -> None:
        nodes = 0 if self._upcoming is None else self._upcoming.tree.nodes
        self._counts = np.zeros(nodes, dtype=np.int64)
        self._cached = self._counts.data
        """By node of the plan's tree: how much of its segment is cached, tokens."""
        self._known_tokens = 0

    # --- nodes of the cache -----------------------------------------------------------------

    def appear(self, node: Hashable) -> None:
        """Take in ``node``, which is new and not annotated."""
        self._unknown[node] = None

    def add(self, node: Hashable, annotation: Annotation, tokens: int) -> None:
        """Count ``node``, of so many ``tokens``, which now has its ``annotation`` of the plan."""
        self._unknown.pop(node, None)
        self._known[node] = None
        self._count(annotation, tokens, 1)

    def split(self, above: Hashable, below: Hashable) -> None:
        """Take in ``above``, the first part of ``below``, which is annotated if ``below`` is."""
        (self._known if below in self._known else self._unknown)[above] = None

    def remove(self, node: Hashable, tokens: int) -> None:
        """Forget ``node``, of so many ``tokens``."""
        self._unknown.pop(node, None)
        if node in self._known:
            del self._known[node]
            annotation = annotation_of(node)
            assert annotation is not None
            self._count(annotation, tokens, -1)

    def unknown(self, most: int) -> list[Hashable]:
        """Return at most so many nodes that are not annotated by the plan yet, oldest first."""
        return [*islice(self._unknown, most)]

    def _count(self, annotation: Annotation, tokens: int, sign: int) -> None:
        self._known_tokens += sign * tokens
        upcoming, start = annotation.upcoming, annotation.end - tokens
        node, shared = annotation.place
        while shared > start:
            above = upcoming.depth_above(node)
            self._cached[node] += sign * (shared - max(above, start))
            node, shared = upcoming.parent(node), above

    # --- who waits for them -----------------------------------------------------------------

    def use(self, cached_tokens: int, plan: Plan | None) -> CacheUse:
        """Return what the cache, which holds so many tokens, is worth to the requests of ``plan``.

        ``plan``: the one whose tree and scan are followed; None: nobody waits.
        """
        if self._upcoming is None or plan is None:
            return CacheUse(unneeded=cached_tokens)
        unknown = cached_tokens - self._known_tokens
        held = np.flatnonzero(self._counts)
        if not held.size:
            return CacheUse(unneeded=self._known_tokens, unknown=unknown)
        tree = self._upcoming.tree
        waits, before = self._upcoming.line()
        low, high = tree.leaf_start[held], tree.leaf_end[held]

        def below(of_leaves: Bools | Floats) -> NDArray[np.number]:
            """The sum over the leaves below each node that is held."""
            total = np.concatenate(([0], np.cumsum(of_leaves)))
            summed: NDArray[np.number] = total[high] - total[low]
            return summed

        tokens, requests = self._counts[held], below(waits)
        excess = (plan.compute_seconds - plan.memory_seconds)[tree.leaf_requests]
        compute = below(np.where(waits, excess, 0.0)) > 0
        soon = int(tokens[below(waits & (before < _SOON)) > 0].sum())
        next_ = int(tokens[below(waits & (before < _NEXT)) > 0].sum())
        needed = int(tokens[requests > 0].sum())
        compute_bound = int(tokens[(requests > 0) & compute].sum())
        return CacheUse(
            soon=soon,
            next=next_ - soon,
            later=needed - next_,
            unneeded=self._known_tokens - needed,
            unknown=unknown,
            compute_bound=compute_bound,
            memory_bound=needed - compute_bound,
            hits=int((tokens * requests).sum()),
        )
