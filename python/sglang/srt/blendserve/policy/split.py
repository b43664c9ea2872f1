"""How the KV memory is divided between the two sides of the scan (paper section 5.3).

The share M_L / M of the compute-bound side makes the blend in flight as dense as what is left. The
memory-bound side fills the rest up to it, so that prompts of the compute-bound side always find
room to flow through. The share has a floor, and more is kept where compute is the scarcer resource;
where the sides hardly differ, nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from sglang.srt.blendserve.cost.cost_model import density
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.pace import rise
from sglang.srt.blendserve.policy.tuning import Tuning
from sglang.srt.blendserve.pool.current_plan import CurrentPlan
from sglang.srt.blendserve.pool.pool_request import PoolRequest


def memory_partition(root: float, compute_side: float, memory_side: float) -> float:
    """Share of the KV memory for the compute-bound side (paper section 5.3: M_L / M), 0 to 1.

    ``root``, ``compute_side``, ``memory_side``: densities of what is left and of the two sides of
    the scan. The share that makes the blend in flight as dense as the rest of the pool:

        M_L = M (rho_root - rho_R) / (rho_L - rho_R)

    Without a difference between the sides any share blends alike; half is returned. A rest that is
    denser than both sides (or sparser) gets all of it (or none).
    """
    if not compute_side > memory_side:
        return 0.5
    if np.isinf(compute_side):
        # Requests without a decode phase hold no KV memory over time: they need none reserved.
        return 0.0
    return float(np.clip((root - memory_side) / (compute_side - memory_side), 0.0, 1.0))


class MemorySplit:
    """The share of the memory kept for the compute-bound side, and when it is found anew."""

    def __init__(self, tuning: Tuning) -> None:
        self.share = 0.0
        """Share of the KV memory that the memory-bound side leaves to the compute-bound one."""
        self._tuning = tuning
        self._steps = 0

    def due(self) -> bool:
        """Count a step; say whether the memory is to be divided anew in it."""
        self._steps += 1
        return (self._steps - 1) % self._tuning.split_steps == 0

    def divide(self, plan: CurrentPlan, rest: RemainingWork, scarcity: float) -> None:
        """Divide the memory for the ``rest`` of the work.

        Where the sides hardly differ, nothing is kept for one of them: any request blends as well,
        and memory that stays empty only lengthens the run.

        ``scarcity``: how scarce compute is (`pace.compute_scarcity`).
        """
        tuning = self._tuning
        compute_side, memory_side = self._densities(plan)
        if math.isnan(compute_side):  # nothing waits that memory could be kept for
            self.share = 0.0
            return
        root = float(density(rest.compute, rest.memory))
        partition = memory_partition(root, compute_side, memory_side)
        share = max(partition, tuning.least_share)
        share += tuning.scarce_share * rise(scarcity, tuning.scarce_from, tuning.scarce_width)
        apart = compute_side / memory_side if memory_side > 0 else math.inf
        kept = 1.0 if math.isnan(apart) else rise(apart, 1.0, max(tuning.apart - 1.0, 1e-9))
        self.share = min(share, tuning.most_share) * kept

    def _densities(self, current: CurrentPlan) -> tuple[float, float]:
        """Densities of the compute-bound and of the memory-bound side as they are now; nan where
        nothing waits."""
        plan, scanner = current.plan, current.scanner
        if plan is None or not len(scanner):
            return math.nan, math.nan
        window = min(self._tuning.side_window, len(scanner) // self._tuning.side_part + 1)
        compute_side, memory_side = (
            float(density(plan.compute_seconds[next_].sum(), plan.memory_seconds[next_].sum()))
            for next_ in (scanner.upcoming(side, window) for side in Side)
        )
        return compute_side, memory_side


def move_underestimated(running: Iterable[PoolRequest], outlived: float) -> None:
    """Let requests that run far longer than expected count for the memory-bound side.

    It is that side's part of the memory that they take up, and in which they must fit when they
    come back after a retraction (paper section 5.3). ``outlived``: times the expected length.
    """
    for request in running:
        if request.generated > outlived * request.expected_tokens:
            request.side = Side.MEMORY
