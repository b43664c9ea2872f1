"""The check of all annotations of a prefix cache against a recount."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.pool.pool_request import shared_tokens
from sglang.srt.blendserve.pool.upcoming_use import AT_ONCE, NextUse
from sglang.srt.blendserve.runtime.cache.cached_prefixes import CacheUse
from sglang.srt.blendserve.runtime.compat import seams

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from sglang.srt.blendserve.pool.pool_request import PoolRequest
    from sglang.srt.blendserve.pool.request_pool import RequestPool
    from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache


def check_integrity(cache: BlendRadixCache) -> None:
    """Compare all annotations, and their sum, with a recount over the prompts that wait.

    Checks also that the eviction order holds just the evictable leaves. Takes time in proportion
    to cached tokens x waiting requests: for tests, and for a cache whose pool is empty.

    Raises AssertionError naming the node that is annotated wrongly, or the sum that is wrong.
    """
    waiting = [] if cache.pool is None else planned(cache.pool)
    upcoming = None if cache.pool is None else cache.pool.current.upcoming
    counted: Counter[str] = Counter()
    for node, path in nodes(cache):
        start, namespace = path.size - len(node.key), seams.namespace(node.key)
        shares = [
            (request, min(shared_tokens(request.prompt, path), path.size))
            for request in waiting
            if request.namespace == namespace
        ]
        if cache.pool is None or upcoming is None:
            continue
        annotation = cache.annotate(node, upcoming)
        annotation.look(start, cache.page_size)
        through = [request for request, shared in shares if shared == path.size]
        due = _next_use(cache.pool, through)
        assert annotation.next_use == due, (
            f"node {node.id}: annotated {annotation.next_use}, recounted {due}"
        )
        needed = max((shared for _, shared in shares), default=0)
        needed = needed // cache.page_size * cache.page_size
        assert max(annotation.needed.shared, start) == max(needed, start), f"node {node.id}: needed"
        counted.update(_tokens(cache.pool, shares, start, path.size))
    total = cache.evictable_size() + cache.protected_size()
    counted["unneeded"] = total - counted["needed"]
    use = cache.use()  # by now all nodes are annotated
    for name in CacheUse._fields:
        found, expected = getattr(use, name), counted[name]
        assert found == expected, f"{name}: {found} tokens, recounted {expected}"
    cache.check_order()


def check_when_idle(cache: BlendRadixCache) -> None:
    """Check ``cache``, whose pool is empty, if it has changed since it was last checked.

    Raises AssertionError as `check_integrity` does.
    """
    if cache.changed_since_check:
        check_integrity(cache)


def planned(pool: RequestPool) -> list[PoolRequest]:
    """Return the waiting requests that annotations count: those of the plan, and returned ones."""
    scanned = set(pool.current.scanner.waiting().tolist())
    waiting, returned = pool.table.everyone_waiting(), pool.table.returned
    return [r for r in waiting if r.index in scanned or r in returned]


def nodes(cache: BlendRadixCache) -> Iterator[tuple[TreeNode, NDArray[np.int32]]]:
    """Iterate over all nodes but the root, each with the (n,) tokens from the root to its end."""
    stack = [(child, np.zeros(0, dtype=np.int32)) for child in cache.root_node.children.values()]
    while stack:
        node, above = stack.pop()
        path = np.concatenate((above, np.array(node.key.raw_token_ids(), dtype=np.int32)))
        yield node, path
        stack += [(child, path) for child in node.children.values()]


def _next_use(pool: RequestPool, through: list[PoolRequest]) -> NextUse | None:
    if not through:
        return None
    if any(r in pool.table.returned for r in through):
        return AT_ONCE
    assert pool.current.plan is not None
    order = pool.current.plan.order.tolist()
    at = [order.index(r.index) for r in through]
    return NextUse(min(at), max(at))


def _tokens(
    pool: RequestPool, shares: list[tuple[PoolRequest, int]], start: int, end: int
) -> Counter[str]:
    """The tokens of a node from ``start`` to ``end`` as `CacheUse` counts them, one by one."""
    plan, counted = pool.current.plan, Counter[str]()
    assert plan is not None
    front, back = pool.current.scanner.front, pool.current.scanner.back
    for at in range(start, end):
        users = [request for request, shared in shares if shared > at]
        use = _next_use(pool, users)
        if use is None:
            continue
        before = 0 if use is AT_ONCE else min(use.first - front, back - use.last)
        indices = [r.index for r in users]
        excess = (plan.compute_seconds[indices] - plan.memory_seconds[indices]).sum()
        counted["needed"] += 1
        counted["hits"] += len(users)
        counted["soon" if before < 100 else "next" if before < 1000 else "later"] += 1
        counted["compute_bound" if excess > 0 else "memory_bound"] += 1
    return counted
