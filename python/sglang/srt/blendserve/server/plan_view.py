"""What a plan looks like, of the scheduler or over all open batches, and its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 720, 160
"""Size of the picture in pixels."""

_DECADES = 3


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan: the scheduler's over what waits in its pool, or that over all open batches.

    Attributes:
        waiting: requests that do not run yet, or have not been handed to the engine.
        running: the others, until they end.
        density: compute density along the scan order, most compute-bound first, at evenly spaced
            positions.
        root_density: of all of them together.
        sharing: share of the prompt tokens saved by the plan's order, as much as any saves.
        optimum_seconds: time of perfect overlap with optimal sharing.
        cached: tokens of the prefix cache by what the plan says of them, as the scheduler's
            `CacheUse` names them; None if the cache is SGLang's own.
    """

    waiting: int
    running: int
    density: Sequence[float]
    root_density: float
    sharing: float
    optimum_seconds: float
    cached: Mapping[str, int] | None = None

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PlanView | None:
        """Return the plan in a scheduler's internal state, None if it has none."""
        plan = state.get("blendserve")
        return cls.of_plan(plan) if plan else None

    @classmethod
    def of_plan(cls, plan: Mapping[str, Any]) -> PlanView | None:
        """Return the plan whose figures are given by the names of the attributes, None if there is
        none."""
        if not plan["density"] or not plan["waiting"]:
            return None
        return cls(**{name: plan[name] for name in cls.__slots__ if name in plan})


@dataclass(frozen=True, slots=True)
class OnlineView:
    """What online requests feel of the batches in the engine beside them, seconds.

    Attributes:
        ended: online requests that have ended since the engine started.
        running: those that decode now; ``waiting``: those that wait for their first token.
        parked: offline requests that sit steps out for them now.
        ttft_p50, ttft_p95: time to first token in the scheduler, of the latest; None before any.
        ttft_target: what it is to be; None for no target.
        tpot_p50, tpot_p95, tpot_target: the same of the time per token after the first.
    """

    ended: int
    running: int
    waiting: int
    parked: int
    ttft_p50: float | None
    ttft_p95: float | None
    ttft_target: float | None
    tpot_p50: float | None
    tpot_p95: float | None
    tpot_target: float | None

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> OnlineView | None:
        """Return what a scheduler's internal state says of them, None before there were any."""
        found = (state.get("blendserve") or {}).get("online")
        if not found or found["ttft_p50"] is None:
            return None
        return cls(**{name: found[name] for name in cls.__slots__})


def bars(density: Sequence[float]) -> list[tuple[float, float, float, float, bool]]:
    """Return the picture's bars: x, y, width, height in pixels, and whether compute-bound.

    Heights are logarithmic, from the middle up for densities over 1 (compute-bound) and down for
    those below (memory-bound), cut off at a thousand either way.
    """
    width, middle = WIDTH / max(len(density), 1), HEIGHT / 2
    found = []
    for index, value in enumerate(density):
        decades = math.log10(value) if 0 < value < math.inf else math.copysign(_DECADES, value - 1)
        height = max(min(abs(decades), _DECADES) / _DECADES * middle, 1.0)
        top = middle - height if decades > 0 else middle
        found.append((index * width, top, width, height, decades > 0))
    return found
