"""SGLang's radix cache, annotated with what the plan will still use (backend ``blendserve``).

A node's annotation (`node_annotation`) says where it lies in the plan's prefix tree and when it is
needed next. Eviction decides by it; the page and the metrics show the sum of all of them
(`cached_prefixes`). Who waits is read off the plan, and never kept per request: see
`pool.upcoming_use`.

Eviction takes what no request of the pool will need first, then what is needed latest. A leaf of
which only the beginning is still needed is split first, and of a needed leaf no more is evicted
than has to be. In a full cache, what a request leaves behind and nobody waits for is not cached at
all: it would be the first to be evicted, before the pool is through.
Which tokens are cached never changes a result, only how much is computed again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey, TreeNode

from sglang.srt.blendserve.pool.upcoming_use import ROOT, NextUse, UpcomingUse
from sglang.srt.blendserve.runtime.cache.cached_prefixes import CachedPrefixes, CacheUse
from sglang.srt.blendserve.runtime.cache.eviction_order import EvictionOrder
from sglang.srt.blendserve.runtime.cache.node_annotation import Annotation, annotation_of
from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.offline_request import offline_request

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

    from sglang.srt.blendserve.pool.pool_request import PoolRequest
    from sglang.srt.blendserve.pool.request_pool import RequestPool

_NEARLY_FULL = 16
"""The cache is nearly full when no more than this fraction of its slots is free."""

_FEW = 32
"""Slots are evicted ahead of need when no more than this fraction of them is free."""

_AHEAD = 2
"""Leaves that are evicted ahead of need in a step at most."""

_LOOKED_AT = 250
"""Nodes that are annotated at most to say what the cache holds: a step waits for them."""

_LEAST_CUT = 64
"""Tokens that are evicted from a needed leaf at least, so that it is not split token by token."""


class BlendRadixCache(seams.EndedRequests, RadixCache):
    """SGLang's radix cache with an eviction order that knows the plan of a request pool.

    Without a pool (`follow`) nothing is ever needed, and the order is SGLang's own.
    """

    def __init__(self, params: CacheInitParams) -> None:
        self.pool: RequestPool | None = None
        self._followed: tuple[Any, Any] = (None, None)
        self._order = EvictionOrder(lambda node: self.eviction_strategy.get_priority(node))
        self._prefixes = CachedPrefixes()
        self._checked_at = 0
        self.evicted_tokens = 0
        """Tokens evicted since the start."""
        self.evicted_needed_tokens = 0
        """Tokens evicted since the start that a waiting request would have used."""
        super().__init__(params)

    def follow(self, pool: RequestPool | None) -> None:
        """Evict by what ``pool`` has planned; without a pool by SGLang's own policy."""
        self.pool = pool

    # --- reading ----------------------------------------------------------------------------

    def cached_tokens(self, key: RadixKey) -> int:
        """Return how many tokens of ``key``, from the first on, are cached.

        As `match_prefix` finds them, but nothing is split, copied or marked as used.
        """
        tokens, space, page = key.token_ids, seams.child_space(key), self.page_size
        node, depth, end = self.root_node, 0, len(tokens) // page * page
        while depth < end:
            # As `RadixKey.child_key` has it, without a key for every node.
            first = tokens[depth] if page == 1 else tuple(tokens[depth : depth + page])
            child = node.children.get(first if space is None else (space, first))
            if child is None:
                break
            whole = child.key.raw_token_ids()
            if tokens[depth : depth + len(whole)] != whole:
                depth += child.key.match(key[depth:end], page_size=page)
                break
            depth += len(whole)
            node = child
        return min(depth, end)

    def annotate(self, node: TreeNode, upcoming: UpcomingUse) -> Annotation:
        """Return the annotation of ``node``, which is not the root, by the plan of ``upcoming``.

        Made once, from that of the node above; `Annotation.look` brings it up to date.
        """
        unknown: list[TreeNode] = []
        place, depth = ROOT, 0
        at = node
        while at is not self.root_node:
            known = annotation_of(at)
            if known is not None and known.upcoming is upcoming:
                if at is node:
                    return known
                place, depth = known.place, known.end
                break
            unknown.append(at)
            at = at.parent
        self._prefixes.follow(upcoming)
        for below in reversed(unknown):
            if place.shared == depth:  # else nobody begins with what is above
                tokens = np.frombuffer(below.key.raw_token_ids(), dtype=np.int64)
                place = upcoming.descend(place, depth, tokens, seams.namespace(below.key))
            depth += len(below.key)
            known = below.blendserve = Annotation(upcoming, place, depth)
            self._prefixes.add(below, known, len(below.key))
        assert known is not None
        return known

    def use(self) -> CacheUse:
        """Return what is cached, by what the plan says of it.

        Takes about 1 ms for each 10,000 requests of the plan. Changes no decision: ranks of a
        tensor parallel group may ask at different times.
        """
        upcoming = None if self.pool is None else self.pool.current.upcoming
        plan = None if self.pool is None else self.pool.current.plan
        self._prefixes.follow(upcoming)
        if upcoming is not None:
            for node in self._prefixes.unknown(_LOOKED_AT):
                self.annotate(node, upcoming)
        return self._prefixes.use(self.evictable_size_ + self.protected_size_, plan)

    # --- eviction ---------------------------------------------------------------------------

    def evict(self, params: EvictParams) -> EvictResult:
        """Free at least ``params.num_tokens`` slots, or all that can be freed."""
        if self.disable:
            return EvictResult()
        began = time.perf_counter()
        evicted = self._evict(params.num_tokens)
        self.update_eviction_metrics(evicted, began)
        return EvictResult(num_tokens_evicted=evicted)

    def _evict(self, tokens: int, most: int | None = None) -> int:
        """Evict at least so many ``tokens``; with ``most``, at most so many unneeded leaves."""
        upcoming = self.upcoming()
        allocator = self.token_to_kv_pool_allocator
        grouped = seams.frees_at_once(allocator)
        if grouped:
            allocator.free_group_begin()  # one change of the free list instead of one per node
        evicted = leaves = 0
        above: TreeNode | None = None
        while evicted < tokens and leaves != most:
            node = None if above is None else self._unneeded(above, upcoming)
            if node is None:
                node = self._order.pop(
                    lambda leaf: self._look(leaf, upcoming), upcoming, unneeded=most is not None
                )
            if node is None:
                break
            needed = False
            if upcoming is not None:
                annotation = self.annotate(node, upcoming)
                needed = annotation.next_use is not None
                self._cut(node, annotation, tokens - evicted)
            above = node.parent
            size = self._remove(node)
            if not self._order.comes_next(above, node):
                above = None
            evicted += size
            leaves += 1
            self.evicted_needed_tokens += size if needed else 0
        if grouped:
            allocator.free_group_end()
        return evicted

    def evict_ahead(self) -> None:
        """Free a few slots that nobody waits for when few are free, before a step wants many.

        So the work of a large prefill's evictions is spread over the steps before it.
        """
        free = self.token_to_kv_pool_allocator.available_size()
        short = self.token_to_kv_pool_allocator.size // _FEW - free
        if short > 0 and not self.disable:
            self._evict(short, most=_AHEAD)

    def upcoming(self) -> UpcomingUse | None:
        """Return the plan's upcoming uses; assess all leaves anew when there is another plan."""
        upcoming = None if self.pool is None else self.pool.current.upcoming
        followed = (upcoming, None if upcoming is None else upcoming.scanner)
        if followed[0] is not self._followed[0] or followed[1] is not self._followed[1]:
            self._followed = followed
            self._order.reassess()
        return upcoming

    def _look(self, leaf: TreeNode, upcoming: UpcomingUse | None) -> NextUse | None:
        """Bring the annotation of ``leaf`` up to date; when all of the leaf is needed next."""
        if upcoming is None:
            return None
        annotation = self.annotate(leaf, upcoming)
        return annotation.look(annotation.end - len(leaf.key), self.page_size)

    def _unneeded(self, leaf: TreeNode, upcoming: UpcomingUse | None) -> TreeNode | None:
        """``leaf`` if nobody needs all of it; else it takes its place in the order."""
        next_use = self._look(leaf, upcoming)
        if next_use is None:
            return leaf
        self._order.assess(leaf, next_use, upcoming)
        return None

    def _cut(self, leaf: TreeNode, annotation: Annotation, tokens: int) -> None:
        """Cut off the beginning of ``leaf`` that should stay.

        That is what waiting requests use, if they do not use it all; else what is used by more
        of them than the rest is, and whatever goes beyond the ``tokens`` to evict.
        """
        end = annotation.end
        start = end - len(leaf.key)
        keep = annotation.needed.shared
        if annotation.next_use is not None:
            least = max(tokens, _LEAST_CUT)
            parting = annotation.upcoming.parting(annotation.needed.node, start)
            keep = max(parting, end - least) // self.page_size * self.page_size
        if start < keep < end:
            self._split_node(leaf.key, leaf, keep - start)

    def _remove(self, leaf: TreeNode) -> int:
        """Free the slots of ``leaf`` and forget it; returns their number."""
        tokens = len(leaf.key)
        self.token_to_kv_pool_allocator.free_segment(leaf.value, start_pos=0)
        self._delete_leaf(leaf)
        seams.record_removed(self, leaf)
        self.evicted_tokens += tokens
        return tokens

    # --- what ended requests leave behind ------------------------------------------------------

    def tokens_to_keep(self, req: Req, tokens: int) -> int | None:
        """Return how many of the ``tokens`` of ``req``, which has ended, to keep; None for all."""
        keep = self.worth_keeping(offline_request(req))
        return None if keep is None else min(keep, tokens) // self.page_size * self.page_size

    def worth_keeping(self, request: PoolRequest | None) -> int | None:
        """Return how many tokens of ``request``, which ends, should stay cached; None for all.

        What nobody waits for is not kept when the cache is nearly full and the pool has more to
        write than there is room. Not so with requests that have arrived since the plan was made:
        they may want it.
        """
        pool, allocator = self.pool, self.token_to_kv_pool_allocator
        if request is None or pool is None or pool.current.unplanned:
            return None
        free = allocator.available_size()
        if free > allocator.size // _NEARLY_FULL or free > pool.current.rest_tokens:
            return None
        upcoming = pool.current.upcoming
        if upcoming is None or self.disable:
            return None
        shared = upcoming.still_shared(request.index)
        return None if shared >= request.prompt.size else shared

    def drop_behind(self, node: TreeNode, end: int, keep: int) -> None:
        """Remove what is cached behind the first ``keep`` tokens of the path to ``node``.

        ``end``: tokens of that path. Only of what no other request uses or continues.
        """
        keep = -(-keep // self.page_size) * self.page_size
        while end > keep and node in self.evictable_leaves:
            above, start = node.parent, end - len(node.key)
            if start < keep:
                self._split_node(node.key, node, keep - start)
            self._remove(node)
            node, end = above, start

    # --- the evictable leaves -----------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything (``flush_cache``)."""
        self._order.clear()
        self._prefixes.clear()
        super().reset()

    def _split_node(self, key: RadixKey, child: TreeNode, split_len: int) -> TreeNode:
        above = super()._split_node(key, child, split_len)
        annotation = annotation_of(child)
        if annotation is not None:
            above.blendserve = annotation.cut(annotation.end - len(child.key))
        self._prefixes.split(above, child)
        return above

    def _update_leaf_status(self, node: TreeNode) -> None:
        super()._update_leaf_status(node)
        if node in self.evictable_leaves:
            self._order.add(node)
            if annotation_of(node) is None:  # new
                self._prefixes.appear(node)
        else:
            self._order.discard(node)

    def _delete_leaf(self, node: TreeNode) -> None:
        super()._delete_leaf(node)
        self._order.discard(node)
        self._prefixes.remove(node, len(node.key))

    @property
    def changed_since_check(self) -> bool:
        """Whether leaves have been added since `check_order` last found nothing wrong."""
        return self._checked_at != self._order.changes

    def check_order(self) -> None:
        """Check that the eviction order holds just the evictable leaves; else AssertionError."""
        known = {node for node in self.evictable_leaves if node in self._order}
        assert known == self.evictable_leaves, "an evictable leaf is missing in the order"
        assert len(self._order) == len(known), "the eviction order holds a node that is no leaf"
        self._checked_at = self._order.changes
