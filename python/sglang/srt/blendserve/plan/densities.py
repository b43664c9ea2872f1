"""The compute density along a plan's order, for a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang.srt.blendserve.plan.merge import merge_units
from sglang.srt.blendserve.plan.scan_order import Plan

_PLACES = 200
"""Densities that are reported: a picture is no finer."""


def plan_figures(plan: Plan | None) -> dict[str, Any]:
    """Return what a plan comes to, in types that every format can carry; of None: that there is
    none.

    The compute density along the scan is given at 200 places at most, at even distances. Each
    stands for the requests around it, so that a plan of any size takes a millisecond or two. It is
    cut to a range that every format can carry.
    """
    return {
        "root_density": None if plan is None else plan.root_density,
        "sharing": None if plan is None else plan.sharing,
        "optimum_seconds": None if plan is None else plan.optimum_seconds,
        "density": [] if plan is None else _density_along(plan),
    }


def _density_along(plan: Plan) -> list[float]:
    size = plan.order.size
    first = np.linspace(0, size, min(size, _PLACES), endpoint=False).astype(np.int64)
    if not first.size:
        return []
    compute = np.add.reduceat(plan.compute_seconds[plan.order], first)
    memory = np.add.reduceat(plan.memory_seconds[plan.order], first)
    return [float(value) for value in np.clip(merge_units(compute, memory), 1e-6, 1e6)]
