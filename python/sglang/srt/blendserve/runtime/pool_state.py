"""What the scheduler reports of its pool (``/server_info``, the batch service's page)."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.plan.densities import plan_figures
from sglang.srt.blendserve.runtime.view import SchedulerView


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
        **plan_figures(pool.current.plan),
        "lanes": lanes,
    }
