"""What the scheduler reports of its pool (``/server_info``, the batch service's page)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang.srt.blendserve.plan.merge import merge_units
from sglang.srt.blendserve.plan.scan_order import Plan
from sglang.srt.blendserve.runtime.view import SchedulerView

_PLACES = 200
"""Densities that are reported: a picture is no finer."""


def pool_state(
    view: SchedulerView,
    *,
    step_factors: tuple[float, float] | None = None,
    lanes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return requests, KV slots (tokens) and the plan, in types that every format can carry.

    ``first_started_at``: Unix seconds.

    ``step_factors``: measured over predicted seconds of compute and of memory traffic, None where
    steps are not measured. ``lanes``: the counts of the two lanes, None where there is one.
    """
    pool = view.pool
    plan = pool.current.plan
    cached = view.cache_use()
    return {
        "waiting": len(pool),
        "running": len(pool.table.running),
        "first_started_at": view.first_started_at,
        "plans_made": pool.current.orders,
        "planner_failures": view.planner_failures,
        "retractions": view.retractions,
        "kv_slots": view.kv_cache.total,
        "kv_free": view.kv_cache.free,
        "cached": None if cached is None else cached._asdict(),
        "step_factors": step_factors,
        "root_density": None if plan is None else plan.root_density,
        "sharing": None if plan is None else plan.sharing,
        "sharing_optimum": None if plan is None else plan.sharing_optimum,
        "optimum_seconds": None if plan is None else plan.optimum_seconds,
        "density": [] if plan is None else _density_along(plan),
        "lanes": lanes,
    }


def _density_along(plan: Plan) -> list[float]:
    """Return the compute density along the scan, at most 200 places at even distances.

    Each place stands for the requests around it, so that a plan of any size takes a millisecond or
    two: a step waits for this. Cut to a range that every format can carry.
    """
    size = plan.order.size
    first = np.linspace(0, size, min(size, _PLACES), endpoint=False).astype(np.int64)
    if not first.size:
        return []
    compute = np.add.reduceat(plan.compute_seconds[plan.order], first)
    memory = np.add.reduceat(plan.memory_seconds[plan.order], first)
    return [float(value) for value in np.clip(merge_units(compute, memory), 1e-6, 1e6)]
