"""The estimators to compare with: each sees finished lengths only and gives all n a length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from process import Moment
from workloads import Workload

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EWMA_WEIGHT = 0.1
_UNSEEN = 256.0


def max_tokens(load: Workload) -> Floats:
    """The cap as a forecast."""
    return load.max_tokens.astype(np.float64)


def global_mean(load: Workload, moment: Moment) -> Floats:
    """Mean of all finished requests."""
    seen = load.output_tokens[moment.finished]
    return np.full(load.size, seen.mean() if seen.size else _UNSEEN)


def subtree_mean(load: Workload, tree: PrefixTree, samples: Ints) -> Floats:
    """The paper's: mean of the samples in the smallest subtree around a request that has one.

    A subtree without a sample so takes the mean of what is nearest by common prefix.
    """
    seen = np.zeros(load.size)
    seen[samples] = 1
    total = np.zeros(load.size)
    total[samples] = load.output_tokens[samples]
    count, sums = tree.leaf_sum(seen), tree.leaf_sum(total)
    node = np.where(count > 0, np.arange(tree.nodes), tree.parent)
    while not np.array_equal(node[node], node):
        node = node[node]
    found = np.zeros(load.size, dtype=np.int64)
    found[tree.leaf_requests] = node[tree.parent[tree.leaf_nodes]]
    mean = np.full(load.size, _UNSEEN)
    np.divide(sums[found], count[found], out=mean, where=count[found] > 0)
    return mean


def job_ewma(load: Workload, moment: Moment) -> Floats:
    """Exponentially weighted mean of each job's finished requests, in the order of their ends."""
    mean = np.full(int(load.job.max()) + 1, np.nan)
    everyone = _UNSEEN
    for request in moment.finished.tolist():
        job, length = load.job[request], float(load.output_tokens[request])
        mean[job] = (
            length if np.isnan(mean[job]) else mean[job] + EWMA_WEIGHT * (length - mean[job])
        )
        everyone += EWMA_WEIGHT * (length - everyone)
    return np.where(np.isnan(mean), everyone, mean)[load.job]
