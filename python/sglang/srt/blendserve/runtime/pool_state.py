"""What the scheduler reports of its pool (``/server_info``, the batch service's page)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.plan.densities import plan_figures
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.view import SchedulerView
from sglang.srt.blendserve.settings import BEYOND_COMPUTE, BEYOND_MEMORY


def pool_state(view: SchedulerView) -> dict[str, Any]:
    """Return requests, KV slots (tokens) and the plan, in types that every format can carry.

    ``first_started_at``: Unix seconds. ``lanes``: the counts of the two lanes, None where there is
    one. ``online``: what online requests feel, in seconds.
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
        **plan_figures(pool.current.plan),
        "lanes": view.lane_state(),
        "online": view.online_figures(),
    }


def told(pool: RequestPool, state: Mapping[str, Any]) -> bool:
    """Take in how much predicted work waits elsewhere for ``pool``; say whether ``state`` has it.

    ``state``: as for SGLang's ``set_internal_state``.
    """
    if BEYOND_COMPUTE not in state:
        return False
    work = RemainingWork(float(state[BEYOND_COMPUTE]), float(state[BEYOND_MEMORY]))
    pool.current.beyond = work
    return True
