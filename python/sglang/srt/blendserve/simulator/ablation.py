"""Parts of the policy switched off one at a time, for ablation studies."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.lengths.estimator import LengthEstimator
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.scanner import DualScanner
from sglang.srt.blendserve.policy.admission import PeakAdmission
from sglang.srt.blendserve.pool.planner import Ordered, Planner
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.workload import Ints, Workload

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class ArrivalPlanner(Planner):
    """Plans as ever, for the totals and densities, but orders requests as they arrived."""

    def make_order(
        self, tree: PrefixTree, waiting: Bools, lengths: LengthEstimator, estimate: Floats
    ) -> Ordered:
        """The plan, and a scan that does not follow it."""
        plan = super().make_order(tree, waiting, lengths, estimate).plan
        return Ordered(plan, DualScanner(np.sort(plan.order)))


class ArrivalPool(RequestPool):
    """Hands requests out as they arrived."""

    planner_type = ArrivalPlanner


class ReserveAll(PeakAdmission):
    """Reserves all that the running set will ever hold, as if no request ended before another."""

    def __init__(self, kv_tokens: ArrayLike, remaining_tokens: ArrayLike) -> None:
        super().__init__(kv_tokens, remaining_tokens)
        self._reserved = self.kv_tokens + float(self._remaining.mean(axis=1).sum())

    def fits(self, kv_tokens: float, remaining_tokens: ArrayLike, limit: float) -> bool:
        """Whether everything fits at once."""
        return (
            self._reserved
            + kv_tokens
            + float(np.asarray(remaining_tokens, dtype=np.float64).mean())
            <= limit
        )

    def add(self, kv_tokens: float, remaining_tokens: ArrayLike) -> None:
        """Let a request join the set."""
        super().add(kv_tokens, remaining_tokens)
        self._reserved += kv_tokens + float(np.asarray(remaining_tokens, dtype=np.float64).mean())


def make_pool(options: BlendOptions, cost: CostModel, kv_slots: int) -> RequestPool:
    """An empty pool that plans as ``options`` say."""
    kind = ArrivalPool if options.arrival_order else RequestPool
    return kind(cost, kv_slots, keep_sharing=options.keep_sharing, sample=options.sample)


def told_lengths(workload: Workload, what: str) -> Ints | None:
    """(n,) what a policy is told of output lengths: ``true``, ``wrong``, ``mean`` or nothing.

    Raises ValueError for anything else.
    """
    if not what:
        return None
    true = workload.output_tokens
    if what == "true":
        return true
    if what == "wrong":
        factor = np.random.default_rng([workload.seed, 6]).choice((0.5, 2.0), true.size)
        return np.maximum(np.round(true * factor), 1).astype(np.int64)
    if what == "mean":
        return np.full(true.size, max(round(float(true.mean())), 1), dtype=np.int64)
    raise ValueError(f"told lengths {what!r}: choose from true, wrong, mean")
