"""The peers: orders over the whole queue, admitted by SGLang's rule (`queue_policy`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.simulator.workload import Workload

Ints = NDArray[np.int64]

PEERS = ("fcfs", "lpm", "dfs-weight", "lof", "random", "dfs", "lpt-ewma", "batchllm")
"""SGLang's own five, client-side depth-first order, and two from the literature."""

CHUNKS = (512, 1024, 2048, 4096, 8192)
"""Chunk sizes that are tried for a peer."""

CONSERVATIVENESS = (1.0, 0.1)
"""Values of SGLang's ``--schedule-conservativeness`` that are tried: as released, and one under
which it reserves next to nothing for outputs."""

_PROFILED = 0.01
"""Share of each source whose lengths BatchLLM is told, for its decode ratio."""


def peer_order(name: str, workload: Workload, tree: PrefixTree) -> Ints:
    """(n,) the order in which a peer tries requests. Raises ValueError for an unknown name."""
    n = workload.size
    if name in ("fcfs", "lpm"):
        # SGLang's lpm is first come, first served above 128 waiting requests.
        return np.arange(n)
    if name == "random":
        return np.random.default_rng([workload.seed, 5]).permutation(n)
    if name == "lof":
        return np.argsort(-workload.max_tokens, kind="stable")
    if name == "dfs":
        return tree.leaf_requests
    if name == "dfs-weight":
        # Cached prefixes with more waiting requests first; the rest follows in depth-first order.
        sorted_tree, _ = tree.reordered(-(tree.leaf_end - tree.leaf_start).astype(np.float64))
        return sorted_tree.leaf_requests
    if name == "batchllm":
        return _decode_ratio_order(workload, tree)
    raise ValueError(f"unknown peer {name!r}; known: {', '.join(PEERS)}")


def _decode_ratio_order(workload: Workload, tree: PrefixTree) -> Ints:
    """BatchLLM: prefix groups by decode tokens over prefill tokens, most decode first.

    Decode lengths are the means of each source's profiled requests (1 % of it).
    """
    profiled = np.zeros(workload.size)
    for source in range(len(workload.sources)):
        members = np.flatnonzero(workload.source == source)
        sample = members[:: max(round(1 / _PROFILED), 1)]
        profiled[members] = workload.output_tokens[sample].mean() if sample.size else 0.0
    decode = tree.leaf_sum(profiled)
    prefill = tree.subtree_sum(tree.segment)
    ordered, _ = tree.reordered(-decode / np.maximum(prefill, 1))
    return ordered.leaf_requests
