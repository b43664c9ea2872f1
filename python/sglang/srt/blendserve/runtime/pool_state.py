"""What the scheduler reports of its pool (``/server_info``, the batch service's page)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.merge import unit_densities
from sglang.srt.blendserve.runtime.view import SchedulerView


def pool_state(
    view: SchedulerView,
    *,
    step_factors: tuple[float, float] | None = None,
    lanes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return requests, KV slots (tokens) and the plan, in types that every format can carry.

    ``step_factors``: measured over predicted seconds of compute and of memory traffic, None where
    steps are not measured. ``lanes``: the counts of the two lanes, None where there is one.
    """
    pool = view.pool
    plan = pool.current.plan
    return {
        "waiting": len(pool),
        "running": len(pool.table.running),
        "plans_made": pool.current.orders,
        "retractions": view.retractions,
        "kv_slots": view.kv_cache.total,
        "kv_free": view.kv_cache.free,
        "step_factors": step_factors,
        "root_density": None if plan is None else plan.root_density,
        "sharing": None if plan is None else plan.sharing,
        "sharing_optimum": None if plan is None else plan.sharing_optimum,
        "optimum_seconds": None if plan is None else plan.optimum_seconds,
        "density": [] if plan is None else _sampled(unit_densities(plan)),
        "lanes": lanes,
    }


def _sampled(density: NDArray[np.float64], most: int = 200) -> list[float]:
    """At most ``most`` values at even distances, cut to a range that every format can carry."""
    places = np.linspace(0, density.size - 1, min(density.size, most)).astype(np.int64)
    return [float(value) for value in np.clip(density[places], 1e-6, 1e6)]
