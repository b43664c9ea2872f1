"""Cut one plan into balanced parts for data parallel ranks (paper section 5.5).

The same dual scan that feeds one engine deals the requests to the ranks: rank after rank takes
from both sides of the scan order until it has its part of the compute and of the memory work; the
last rank gets the middle. Each part is two runs of the scan order, so k ranks make 2 (k - 1)
cuts, and a cut costs no more than the prefix shared across it: at most one root-to-leaf path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.scan_order import Plan

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank gets."""

    requests: Ints
    """(m,) request indices in scan order, most compute-bound first."""
    compute_seconds: float
    """Compute of the part, prefixes shared across a cut not yet paid twice."""
    memory_seconds: float


def partition(plan: Plan, ranks: int) -> list[Part]:
    """Deal the requests of ``plan`` to ``ranks`` parts of equal compute and memory work.

    Every planned request is in exactly one part. Balance is as good as whole requests allow;
    with fewer requests than ranks some parts are empty. Raises ValueError if ``ranks`` is below 1.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    compute = np.append(0.0, np.cumsum(plan.compute_seconds[plan.order]))
    memory = np.append(0.0, np.cumsum(plan.memory_seconds[plan.order]))
    low, high = 0, plan.order.size
    parts: list[Part] = []
    for left in range(ranks, 1, -1):
        front, back = _deal(compute, memory, low, high, left)
        parts.append(_part(plan, np.r_[low:front, back:high]))
        low, high = front, back
    parts.append(_part(plan, np.r_[low:high]))
    return parts


def _part(plan: Plan, positions: NDArray[np.integer]) -> Part:
    requests = plan.order[positions.astype(np.int64)]
    return Part(
        requests=requests,
        compute_seconds=float(plan.compute_seconds[requests].sum()),
        memory_seconds=float(plan.memory_seconds[requests].sum()),
    )


def _deal(compute: Floats, memory: Floats, low: int, high: int, ranks: int) -> tuple[int, int]:
    """How far one of ``ranks`` ranks takes from both sides of positions ``low`` to ``high``.

    Returns (front, back): it takes ``low`` to ``front`` and ``back`` to ``high``. ``compute`` and
    ``memory`` are prefix sums along the scan. Looks at every front; the back that then completes
    the compute part is found by bisection; the pair nearest to both parts wins.
    """
    wanted = np.array([compute[high] - compute[low], memory[high] - memory[low]]) / ranks
    front = np.arange(low, high + 1)
    missing = wanted[0] - (compute[front] - compute[low])
    exact = np.searchsorted(compute, compute[high] - missing)
    front = np.concatenate([front, front])
    back = np.clip(np.concatenate([exact, exact - 1]), front, high)
    got = np.stack(
        [
            compute[front] - compute[low] + compute[high] - compute[back],
            memory[front] - memory[low] + memory[high] - memory[back],
        ]
    )
    off = np.abs(got - wanted[:, None]) / np.maximum(wanted[:, None], np.finfo(float).tiny)
    best = int(np.argmin(off.max(axis=0)))
    return int(front[best]), int(back[best])
