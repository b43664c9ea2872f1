"""The plan: in which order to scan the requests, and what each of them and all of them cost.

    prompts -> prefix tree -> annotate -> layer sort -> scan order

Building the tree reads the prompts. All the rest depends on predicted output lengths, is cheap,
and is repeated when predictions change (`plan_tree` over the part of the tree that still waits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel, density
from sglang.srt.blendserve.plan.annotations import Annotations, RequestCosts
from sglang.srt.blendserve.plan.layer_sort import SortedTree, sort_tree
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """A scan order over m planned requests out of n, most compute-bound first.

    Arrays by request have shape (n,) and 0 where a request is not planned.
    """

    order: Ints
    """(m,) the scan order: the request at each scan position, as the dual scanner takes them."""

    prompt_tokens: Ints
    """(n,) prompt tokens, by request."""
    output_tokens: Floats
    """(n,) predicted output tokens, by request."""
    computed_tokens: Floats
    """(n,) prompt tokens to compute, by request: shared prefixes split over those who share."""
    compute_seconds: Floats
    """(n,) seconds of compute, by request: shared prefixes split over those who share."""
    memory_seconds: Floats
    """(n,) seconds of KV cache reads while decoding, by request."""

    sharing: float
    """Share of the prompt tokens saved when every shared prefix is computed once (paper's s_o): the
    order is depth first, so this is also what it saves."""
    optimum_seconds: float
    """Perfect overlap and optimal sharing: max((1 - s_o) T_comp, T_mem) (paper's T_o)."""
    bound_seconds: float | None
    """`optimum_seconds` with weight loading, once for each of the fewest steps there can be: the
    cache is full in all of them, and what requests share is stored once. None if the size of the KV
    cache is not known."""
    total_compute_seconds: float
    """Compute of all planned requests in this order, seconds."""
    total_memory_seconds: float
    """KV cache reads of all planned requests, seconds."""

    sorted_tree: SortedTree
    """The prefix tree, sorted, with the costs of its requests."""

    @property
    def tree(self) -> PrefixTree:
        """The sorted tree: its leaves from left to right are ``order``."""
        return self.sorted_tree.tree

    @property
    def costs(self) -> RequestCosts:
        """What each request costs, shape (n,): the arrays by request, together."""
        return self.sorted_tree.costs

    @property
    def annotations(self) -> Annotations:
        """Sums per node of ``tree``; made when first read, because only reports read them."""
        return self.sorted_tree.annotations

    @property
    def root_density(self) -> float:
        """Compute density of all planned requests together (paper's rho(root))."""
        return float(density(self.total_compute_seconds, self.total_memory_seconds))


def build_plan(
    prompts: Sequence[NDArray[np.integer]],
    output_tokens: ArrayLike,
    cost: CostModel,
    *,
    namespaces: NDArray[np.integer] | None = None,
    kv_slots: int | None = None,
) -> Plan:
    """Plan n requests, from their prompts.

    ``prompts``: n one-dimensional integer arrays of token ids. ``output_tokens``: (n,) predicted
    output lengths, at least 0. ``namespaces``: (n,) integers; requests of different namespaces
    share no prefix. ``kv_slots``: tokens the KV cache holds, for `Plan.bound_seconds`.

    The same input gives the same plan bit for bit. Raises ValueError if shapes do not fit or a
    length is negative or not finite.
    """
    return plan_tree(
        PrefixTree.build(prompts, namespaces),
        output_tokens,
        cost,
        kv_slots=kv_slots,
    )


def plan_tree(
    tree: PrefixTree,
    output_tokens: ArrayLike,
    cost: CostModel,
    *,
    kv_slots: int | None = None,
    kv_reads: ArrayLike | None = None,
) -> Plan:
    """Plan the requests of a prefix ``tree`` (paper section 5.2), without reading a prompt.

    Arguments as in `build_plan`. ``kv_reads``: (n,) KV tokens that each request is expected to
    read in decoding, where that is more than its predicted length says
    (`LengthEstimator.kv_reads`). To plan some requests of a tree alone, give it
    `PrefixTree.restricted`. Raises ValueError if shapes do not fit or a value is negative or not
    finite.
    """
    lengths = _checked("output_tokens", output_tokens, tree.requests)
    reads = None if kv_reads is None else _checked("kv_reads", kv_reads, tree.requests)
    done = sort_tree(tree, lengths, cost, reads)
    costs = done.costs
    compute = float(costs.compute_seconds.sum())
    memory = float(costs.memory_seconds.sum())
    return Plan(
        order=done.tree.leaf_requests,
        prompt_tokens=costs.prompt_tokens,
        output_tokens=costs.output_tokens,
        computed_tokens=costs.computed_tokens,
        compute_seconds=costs.compute_seconds,
        memory_seconds=costs.memory_seconds,
        sharing=tree.sharing,
        optimum_seconds=max(compute, memory),
        bound_seconds=_bound(costs, cost, kv_slots),
        total_compute_seconds=compute,
        total_memory_seconds=memory,
        sorted_tree=done,
    )


def _checked(name: str, values: ArrayLike, requests: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (requests,):
        raise ValueError(f"{name} must have shape ({requests},), got {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"{name} must be finite and at least 0")
    return array


def _bound(costs: RequestCosts, cost: CostModel, kv_slots: int | None) -> float | None:
    """Lower bound with weight loading, seconds; None without the size of the KV cache."""
    if kv_slots is None:
        return None
    if kv_slots < 1:
        raise ValueError(f"kv_slots must be at least 1, got {kv_slots}")
    memory = float(costs.memory_seconds.sum())
    shared = (costs.prompt_tokens - costs.computed_tokens) * costs.output_tokens
    stored = memory - float(cost.kv_read_seconds(shared).sum())
    steps = stored / float(cost.kv_read_seconds(kv_slots))
    weights = float(cost.weights_seconds(np.inf))
    return max(float(costs.compute_seconds.sum()), memory + steps * weights)
