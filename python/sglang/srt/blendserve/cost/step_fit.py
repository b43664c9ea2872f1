"""What steps really cost: a correction of the cost model's constants from measured step times.

The cost model counts work at the device's peak rates, and no engine reaches them; it reaches them
to different degrees for compute and for memory. Pacing weighs one against the other, so what
matters is how far the two degrees are apart.
"""

from __future__ import annotations

import numpy as np

_FORGET = 0.998
"""Weight of a step after each further one: the last 500 steps or so count. Unproven."""

_PRIOR_STEPS = 1.0
"""Steps that say otherwise outweigh the assumption that both kinds of work are equally slow.
Unproven."""

_LEAST_STEPS = 64
"""Steps seen before anything is corrected. Unproven."""

_FIRST_STEPS = 8
"""Steps that are taken in whatever they took, so that there is something to compare the next with.
Unproven."""

_OUTLIER = 4.0
"""A step this many times longer than expected did something else as well: it is left out.
Unproven; test_step_fit.py shows that pauses do no harm."""

_LEAST, _MOST = 1e-9, 1e6
"""Seconds of work or of time that a step can be meant to have; what lies outside is left out."""

MOST = 4.0
"""The correction of compute against memory stays within 1 / MOST and MOST. Unproven."""


class StepFit:
    """Least squares of step seconds = a * compute + b * memory + fixed, relative errors.

    Where steps hold compute and memory in one constant ratio, a and b cannot be told apart; both
    are then drawn to one common value, which changes no pace.
    """

    def __init__(self) -> None:
        self._products = np.zeros((3, 3))
        self._targets = np.zeros(3)
        self._weight = self._work = self._seconds = 0.0
        self.steps = 0

    def add(self, compute: float, memory: float, seconds: float) -> None:
        """Take in one step: its work by the cost model, and what it took (all in seconds)."""
        work = compute + memory
        if not (_LEAST < work < _MOST and _LEAST < seconds < _MOST and min(compute, memory) >= 0):
            return
        if self.steps >= _FIRST_STEPS and seconds > _OUTLIER * work * self.slowness:
            return
        self._weight = _FORGET * self._weight + 1
        self._work = _FORGET * self._work + work
        self._seconds = _FORGET * self._seconds + seconds
        # Divided by the work, a long step and a short one count the same. The fixed cost is
        # counted in mean steps, so that its column is of the others' size.
        row = np.array([compute, memory, self._work / self._weight]) / work
        self._products = _FORGET * self._products + np.outer(row, row)
        self._targets = _FORGET * self._targets + row * (seconds / work)
        self.steps += 1

    @property
    def slowness(self) -> float:
        """Measured over predicted seconds of the steps seen; 1 before any."""
        return self._seconds / self._work if self._work > 0 else 1.0

    def factors(self) -> tuple[float, float]:
        """(compute, memory): how many times its predicted seconds each kind of work takes.

        Both are positive and at most `MOST` apart; (1, 1) until enough steps were seen.
        """
        if self.steps < _LEAST_STEPS:
            return 1.0, 1.0
        common = self.slowness
        for free in ([0, 1, 2], [0, 1]):
            prior = np.array([common, common, 0.0])[free]
            weight = np.eye(len(free)) * _PRIOR_STEPS * np.trace(self._products) / 3 / self._weight
            found = np.linalg.solve(
                self._products[np.ix_(free, free)] + weight, self._targets[free] + weight @ prior
            )
            if len(free) == 2 or found[2] >= 0:
                break
        compute, memory = (max(float(factor), 1e-3 * common) for factor in found[:2])
        middle = (compute * memory) ** 0.5
        apart = min(max(compute / memory, 1 / MOST), MOST) ** 0.5
        return middle * apart, middle / apart
