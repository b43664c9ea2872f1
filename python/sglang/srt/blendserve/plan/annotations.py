"""Annotations of the prefix tree (paper section 5.1): what each request and subtree costs.

A shared prefix is computed once, so each node's prefill is split evenly over the requests below
it. The cost of a set of requests is then the sum over its members, the root's is the whole
job's, and a request behind a long shared prefix is not taken for compute-bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel, density
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree, path_sum

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RequestCosts:
    """Per request, indexed as the tree's requests; 0 for requests that are not in the tree."""

    prompt_tokens: Ints
    """(requests,) prompt tokens."""
    output_tokens: Floats
    """(requests,) predicted output tokens."""
    computed_tokens: Floats
    """(requests,) prompt tokens to compute: own ones and a share of each shared prefix."""
    compute_seconds: Floats
    """(requests,) compute, shared prefixes split over those who share."""
    memory_seconds: Floats
    """(requests,) KV cache reads while decoding (paper's Mem)."""

    @property
    def density(self) -> Floats:
        """(requests,) compute density of each request (paper's rho); infinite without memory."""
        return density(self.compute_seconds, self.memory_seconds)


@dataclass(frozen=True, slots=True)
class Annotations:
    """Per node of a tree (nodes,): sums over the requests below it."""

    requests: Ints
    """(nodes,) requests below each node."""
    prompt_tokens: Ints
    """(nodes,) prompt tokens of the requests below each node."""
    unique_tokens: Ints
    """Tokens of the segments in the subtree: its prompt tokens with each prefix counted once."""
    output_tokens: Floats
    """(nodes,) predicted output tokens of the requests below each node."""
    compute_seconds: Floats
    """Compute with the requests' shares of the prefixes above the node: adds up over siblings."""
    memory_seconds: Floats
    """KV cache reads while decoding."""

    @property
    def density(self) -> Floats:
        """(nodes,) compute density of each subtree (paper's rho(R))."""
        return density(self.compute_seconds, self.memory_seconds)

    @property
    def sharing(self) -> Floats:
        """(nodes,) share of the subtree's prompt tokens that are saved inside it."""
        shared = (self.prompt_tokens - self.unique_tokens).astype(np.float64)
        return shared / np.maximum(self.prompt_tokens, 1)

    def take(self, order: Ints) -> Annotations:
        """The annotations by new node, for an ``order`` from `PrefixTree.reordered`."""
        return Annotations(
            requests=self.requests[order],
            prompt_tokens=self.prompt_tokens[order],
            unique_tokens=self.unique_tokens[order],
            output_tokens=self.output_tokens[order],
            compute_seconds=self.compute_seconds[order],
            memory_seconds=self.memory_seconds[order],
        )


def request_costs(
    tree: PrefixTree,
    output_tokens: Floats,
    cost: CostModel,
    kv_reads: Floats | None = None,
) -> RequestCosts:
    """What each request of ``tree`` costs.

    ``output_tokens``: (requests,) predicted lengths. ``kv_reads``: (requests,) KV tokens they
    are expected to read in decoding; without it, as if the predictions were exact. (The paper's
    Mem, p d + d^2 / 2, is convex in d: lengths that vary read more than their mean does.)
    """
    leaves, requests = tree.leaf_nodes, tree.leaf_requests
    below = np.maximum(tree.leaf_end - tree.leaf_start, 1)
    prefill = cost.prefill_seconds(tree.segment, tree.depth[tree.parent])
    prompt = tree.depth[leaves]
    output = output_tokens[requests]

    def by_request(values: Floats) -> Floats:
        placed = np.zeros(tree.requests, dtype=np.float64)
        placed[requests] = values
        return placed

    prompt_tokens = np.zeros(tree.requests, dtype=np.int64)
    prompt_tokens[requests] = prompt
    if kv_reads is None:
        memory = cost.memory_seconds(prompt, output)
    else:
        memory = cost.kv_read_seconds(kv_reads[requests])
    own = path_sum(tree.parent, tree.segment / below)
    shared = path_sum(tree.parent, prefill / below)
    return RequestCosts(
        prompt_tokens=prompt_tokens,
        output_tokens=by_request(output),
        computed_tokens=by_request(own[leaves]),
        compute_seconds=by_request(shared[leaves] + cost.output_seconds(prompt, output)),
        memory_seconds=by_request(memory),
    )


def annotate(tree: PrefixTree, costs: RequestCosts) -> Annotations:
    """Sum the requests' costs over every subtree of ``tree``."""
    return Annotations(
        requests=tree.leaf_end - tree.leaf_start,
        prompt_tokens=tree.leaf_sum(costs.prompt_tokens),
        unique_tokens=tree.subtree_sum(tree.segment),
        output_tokens=tree.leaf_sum(costs.output_tokens),
        compute_seconds=tree.leaf_sum(costs.compute_seconds),
        memory_seconds=tree.leaf_sum(costs.memory_seconds),
    )
