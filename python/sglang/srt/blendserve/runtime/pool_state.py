"""What the scheduler reports of its pool (``/server_info``, the batch service's page)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.merge import unit_densities

if TYPE_CHECKING:
    from sglang.srt.blendserve.runtime.scheduler import BlendScheduler


def pool_state(scheduler: BlendScheduler) -> dict[str, Any]:
    """Requests, slots and the plan, in types that every format can carry."""
    pool, feedback, overlap = scheduler.pool, scheduler.step_feedback, scheduler.overlap
    plan = pool.plan
    return {
        "waiting": len(pool),
        "running": len(pool.running),
        "plans_made": pool.plans_made,
        "retractions": scheduler.retractions,
        "kv_slots": scheduler.max_total_num_tokens,
        "kv_free": scheduler.token_to_kv_pool_allocator.available_size(),
        "step_factors": None if feedback is None else feedback.factors,
        "root_density": None if plan is None else plan.root_density,
        "sharing": None if plan is None else plan.sharing,
        "sharing_optimum": None if plan is None else plan.sharing_optimum,
        "optimum_seconds": None if plan is None else plan.optimum_seconds,
        "density": [] if plan is None else _sampled(unit_densities(plan)),
        "lanes": None if overlap is None else overlap.state(),
    }


def _sampled(density: NDArray[np.float64], most: int = 200) -> list[float]:
    """At most ``most`` values at even distances, cut to a range that every format can carry."""
    places = np.linspace(0, density.size - 1, min(density.size, most)).astype(np.int64)
    return [float(value) for value in np.clip(density[places], 1e-6, 1e6)]
