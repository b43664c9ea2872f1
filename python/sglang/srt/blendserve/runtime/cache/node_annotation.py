"""A cache node's annotation, and the check of all of them against a recount."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import density
from sglang.srt.blendserve.pool.pool_request import shared_tokens
from sglang.srt.blendserve.runtime.compat import seams

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from sglang.srt.blendserve.pool.pool_request import PoolRequest
    from sglang.srt.blendserve.pool.request_pool import RequestPool
    from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache


@dataclass(frozen=True, slots=True)
class Annotation:
    """What the pool still wants of one node of the prefix cache.

    Counts the planned requests that wait, returned ones included; requests that have arrived
    since the plan was made count from the next plan on.
    """

    requests: int = 0
    """Waiting requests that use at least one page of the node's own tokens."""
    next_use: int | None = None
    """How many requests of the plan come before the nearest one that uses the node, counted from
    the nearer side of the scan; negative if it is served before the plan. None: nobody does."""
    density: float = 0.0
    """Compute density of the planned requests that use the node."""
    kv_tokens: float = 0.0
    """KV tokens that the requests which use the node are predicted to hold when they end."""


NOT_NEEDED = Annotation()


def annotate_node(cache: BlendRadixCache, node: TreeNode) -> Annotation:
    """Return the annotation of the cache's ``node`` as of now."""
    upcoming = cache.upcoming()
    if upcoming is None or node is cache.root_node:
        return NOT_NEEDED
    above, depth = cache.place(node.parent, upcoming)
    page = np.frombuffer(node.key[: cache.page_size].raw_token_ids(), dtype=np.int64)
    place = upcoming.descend(above, depth, page, seams.namespace(node.key))
    if place.shared < depth + page.size:
        return NOT_NEEDED
    use = upcoming.next_use(place.node)
    if use is None:
        return NOT_NEEDED
    assert cache.pool is not None
    waiting = upcoming.waiting(place.node)
    plan = cache.pool.current.plan
    assert plan is not None
    compute, memory = plan.compute_seconds[waiting].sum(), plan.memory_seconds[waiting].sum()
    return Annotation(
        requests=waiting.size,
        next_use=min(upcoming.distances(use)),
        density=float(density(compute, memory)),
        kv_tokens=float((plan.prompt_tokens[waiting] + plan.output_tokens[waiting]).sum()),
    )


def check_integrity(cache: BlendRadixCache) -> None:
    """Compare all annotations with a recount over the prompts that wait.

    Checks also that the eviction order holds just the evictable leaves. Takes time in proportion
    to nodes x waiting requests: for tests, and for a cache whose pool is empty.

    Raises AssertionError naming the node that is annotated wrongly.
    """
    waiting = [] if cache.pool is None else planned(cache.pool)
    for node, path in nodes(cache):
        least = path.size - len(node.key) + cache.page_size
        namespace = seams.namespace(node.key)
        through = [
            request
            for request in waiting
            if request.namespace == namespace and shared_tokens(request.prompt, path) >= least
        ]
        expected = NOT_NEEDED if cache.pool is None else _recount(cache.pool, through)
        found = annotate_node(cache, node)
        assert _same(found, expected), f"node {node.id}: annotated {found}, recounted {expected}"
    cache.check_order()


def check_when_idle(cache: BlendRadixCache) -> None:
    """Check ``cache``, whose pool is empty, if it has changed since it was last checked.

    Raises AssertionError as `check_integrity` does.
    """
    if cache.changed_since_check:
        check_integrity(cache)


def _same(one: Annotation, other: Annotation) -> bool:
    """Equal, but for the order in which seconds were added up."""
    counted = one.requests == other.requests and one.next_use == other.next_use
    return counted and np.allclose(
        (one.density, one.kv_tokens), (other.density, other.kv_tokens), rtol=1e-9
    )


def planned(pool: RequestPool) -> list[PoolRequest]:
    """Return the waiting requests that annotations count: those of the plan, and returned ones."""
    scanned = set(pool.current.scanner.waiting().tolist())
    waiting, returned = pool.table.everyone_waiting(), pool.table.returned
    return [r for r in waiting if r.index in scanned or r in returned]


def _recount(pool: RequestPool, through: list[PoolRequest]) -> Annotation:
    if not through:
        return NOT_NEEDED
    plan = pool.current.plan
    assert plan is not None
    indices = np.array([r.index for r in through])
    scan = pool.current.scanner.waiting().tolist()
    ahead = any(r in pool.table.returned for r in through)
    front, back = pool.current.scanner.front, pool.current.scanner.back
    order = plan.order.tolist()
    at = [-1] if ahead else [order.index(r.index) for r in through if r.index in scan]
    distance = min(-1 - front, back + 1) if ahead else min(min(at) - front, back - max(at))
    compute, memory = plan.compute_seconds[indices].sum(), plan.memory_seconds[indices].sum()
    return Annotation(
        requests=len(through),
        next_use=distance,
        density=float(density(compute, memory)),
        kv_tokens=float((plan.prompt_tokens[indices] + plan.output_tokens[indices]).sum()),
    )


def nodes(cache: BlendRadixCache) -> Iterator[tuple[TreeNode, NDArray[np.int32]]]:
    """Iterate over all nodes but the root, each with the (n,) tokens from the root to its end."""
    stack = [(child, np.zeros(0, dtype=np.int32)) for child in cache.root_node.children.values()]
    while stack:
        node, above = stack.pop()
        path = np.concatenate((above, np.array(node.key.raw_token_ids(), dtype=np.int32)))
        yield node, path
        stack += [(child, path) for child in node.children.values()]
