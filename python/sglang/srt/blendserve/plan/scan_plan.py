"""The plan: in which order to scan the requests, and what each of them and all of them cost.

    prompts -> prefix tree -> annotate, layer sort -> split -> merge -> scan order

Building the tree reads the prompts; all the rest depends on predicted output lengths, is cheap,
and can be repeated when predictions change (`replan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel, density
from sglang.srt.blendserve.plan.annotations import Annotations, RequestCosts
from sglang.srt.blendserve.plan.merge import merge_units
from sglang.srt.blendserve.plan.node_split import SortedTree, sort_tree, split_tree
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

KEEP_SHARING = 0.99
"""Part of the prefix sharing that node splits leave (paper section 5.2)."""


@dataclass(frozen=True)
class Plan:
    """A scan order over m planned requests out of n, most compute-bound first.

    Arrays by request have shape (n,) and 0 where a request is not planned; arrays along the scan
    have shape (m,).
    """

    order: Ints
    """(m,) request at each scan position."""
    position: Ints
    """(n,) scan position of each request; -1 where it is not planned."""

    prompt_tokens: Ints
    """(n,) by request."""
    output_tokens: Floats
    """(n,) predicted, by request."""
    computed_tokens: Floats
    """(n,) prompt tokens to compute, by request: shared prefixes split over those who share."""
    compute_seconds: Floats
    """(n,) by request, shared prefixes split likewise."""
    memory_seconds: Floats
    """(n,) by request: KV cache read while decoding."""

    sharing: float
    """Share of the prompt tokens saved when prefixes are shared as in this order (paper's s)."""
    sharing_optimum: float
    """The same without node splits: every shared prefix computed once (paper's s_o)."""
    optimum_seconds: float
    """Perfect overlap and optimal sharing: max((1 - s_o) T_comp, T_mem) (paper's T_o)."""
    bound_seconds: float | None
    """The same with weight loading: memory x (1 + weight bytes / KV bytes); None if the size of
    the KV cache is not known. With the cache always full this is the fewest steps there can be."""
    total_compute_seconds: float
    total_memory_seconds: float

    trie: PrefixTree
    """The prefix tree as built."""
    sorted_tree: SortedTree
    """The same sorted and split."""

    # What only reports read is made when it is first read.

    @property
    def tree(self) -> PrefixTree:
        """The sorted and split tree: its leaves from left to right are ``order``."""
        return self.sorted_tree.tree

    @property
    def annotations(self) -> Annotations:
        """Per node of ``tree``."""
        return self.sorted_tree.annotations

    @property
    def unit(self) -> Ints:
        """(m,) scheduling unit along the scan, never falling."""
        return self._units[0]

    @property
    def density(self) -> Floats:
        """(m,) compute density of the unit along the scan, never rising."""
        return self._units[1]

    @cached_property
    def _units(self) -> tuple[Ints, Floats]:
        return merge_units(self.compute_seconds[self.order], self.memory_seconds[self.order])

    @property
    def root_density(self) -> float:
        """Compute density of all planned requests together (paper's rho(root))."""
        return float(density(self.total_compute_seconds, self.total_memory_seconds))

    @property
    def costs(self) -> RequestCosts:
        """The arrays by request, together."""
        return RequestCosts(
            self.prompt_tokens,
            self.output_tokens,
            self.computed_tokens,
            self.compute_seconds,
            self.memory_seconds,
        )


def build_plan(
    prompts: Sequence[NDArray[np.integer]],
    output_tokens: ArrayLike,
    cost: CostModel,
    *,
    namespaces: NDArray[np.integer] | None = None,
    keep_sharing: float = KEEP_SHARING,
    kv_slots: int | None = None,
) -> Plan:
    """Plan n requests.

    ``prompts``: n one-dimensional integer arrays of token ids. ``output_tokens``: (n,) predicted
    output lengths, at least 0. ``namespaces``: (n,) integers; requests of different namespaces
    share no prefix. ``keep_sharing``: part of the sharing that node splits must leave (1: no
    splits). ``kv_slots``: tokens the KV cache holds, for `Plan.bound_seconds`.

    The same input gives the same plan bit for bit. Raises ValueError if shapes do not fit or a
    length is negative or not finite.
    """
    return plan_tree(
        PrefixTree.build(prompts, namespaces),
        output_tokens,
        cost,
        keep_sharing=keep_sharing,
        kv_slots=kv_slots,
    )


def replan(
    plan: Plan,
    output_tokens: ArrayLike,
    cost: CostModel,
    *,
    remaining: Bools | None = None,
    keep_sharing: float = KEEP_SHARING,
    kv_slots: int | None = None,
) -> Plan:
    """``plan`` again for new predicted ``output_tokens`` (n,), without reading a prompt.

    ``remaining``: (n,) mask of the requests still to be planned (default: all); the numbering of
    the requests stays. Starts from the tree as built, so earlier splits do not add up.
    """
    trie = plan.trie
    if remaining is not None:
        if remaining.shape != (trie.requests,):
            raise ValueError(f"remaining must have shape ({trie.requests},), got {remaining.shape}")
        trie = trie.restricted(remaining)
    return plan_tree(trie, output_tokens, cost, keep_sharing=keep_sharing, kv_slots=kv_slots)


def plan_tree(
    trie: PrefixTree,
    output_tokens: ArrayLike,
    cost: CostModel,
    *,
    keep_sharing: float = KEEP_SHARING,
    kv_slots: int | None = None,
    kv_reads: ArrayLike | None = None,
) -> Plan:
    """Plan the requests of a prefix tree; arguments as in `build_plan`.

    ``kv_reads``: (n,) KV tokens that each is expected to read in decoding, where that is more
    than its predicted length says (`LengthEstimator.kv_reads`).
    """
    lengths = _checked("output_tokens", output_tokens, trie.requests)
    reads = None if kv_reads is None else _checked("kv_reads", kv_reads, trie.requests)
    whole = sort_tree(trie, lengths, cost, reads)
    done = split_tree(whole, lengths, cost, keep_sharing=keep_sharing, kv_reads=reads)
    tree, costs = done.tree, done.costs
    order = tree.leaf_requests
    position = np.full(trie.requests, -1, dtype=np.int64)
    position[order] = np.arange(order.size)
    compute = float(whole.costs.compute_seconds.sum())
    memory = float(whole.costs.memory_seconds.sum())
    return Plan(
        order=order,
        position=position,
        prompt_tokens=costs.prompt_tokens,
        output_tokens=costs.output_tokens,
        computed_tokens=costs.computed_tokens,
        compute_seconds=costs.compute_seconds,
        memory_seconds=costs.memory_seconds,
        sharing=tree.sharing,
        sharing_optimum=trie.sharing,
        optimum_seconds=max(compute, memory),
        bound_seconds=_bound(compute, memory, cost, kv_slots),
        total_compute_seconds=float(costs.compute_seconds.sum()),
        total_memory_seconds=memory,
        trie=trie,
        sorted_tree=done,
    )


def _checked(name: str, values: ArrayLike, requests: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (requests,):
        raise ValueError(f"{name} must have shape ({requests},), got {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"{name} must be finite and at least 0")
    return array


def _bound(compute: float, memory: float, cost: CostModel, kv_slots: int | None) -> float | None:
    """Lower bound with weight loading, seconds; None without the size of the KV cache."""
    if kv_slots is None:
        return None
    if kv_slots < 1:
        raise ValueError(f"kv_slots must be at least 1, got {kv_slots}")
    full_read = float(cost.kv_read_seconds(kv_slots))
    return max(compute, memory * (1 + float(cost.weights_seconds(np.inf)) / full_read))
