"""The safety margin of memory admission: how far the memory in use may exceed its expectation.

The predicted peak is an expectation. Among many requests errors cancel; with few in flight, as in a
small KV cache, one that runs long is felt, so the margin follows the standard deviation

    z * sqrt( sum of independent variances + (sum of common standard deviations)^2 )

of what the requests in flight still write. The errors of requests of a kind of which nothing is
known yet are not independent: what they have in common adds up in the second sum.

Where the memory holds several requests at their caps, requests of such a kind are even counted with
their caps: that costs little, and learning does not begin with a flood. Where it does not, a cap
says nothing.

Only what may go wrong while a new request is there is its concern: lengths are looked at up to its
own, and a request that ends soon is not held up by others whose ends are far off and uncertain.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DEVIATIONS, MORE_DEVIATIONS, MANY = 1.0, 2.0, 32
"""Standard deviations that are kept free beside many requests, how many more beside few, and from
how many on they are many: a retraction then costs little of the work in flight."""

ALIKE = 0.35
"""Share of the errors that requests of an unknown kind have in common."""

BIAS = 0.1
"""Error of the mean of lengths that are not known, as a share: it does not cancel among many."""

_AFFORDABLE = 5
"""How many times the memory must hold a request at its cap for unknown kinds to count with it."""


def worst_case(cap: Floats, lived: Floats, slots: int) -> Floats:
    """(m,) tokens that requests of an unknown kind may still write; infinite: no use to count.

    ``cap``: (m,) most output tokens; ``lived``: (m,) those so far; ``slots``: of the KV cache.
    """
    return np.where(_AFFORDABLE * cap <= slots, np.maximum(cap - lived, 1.0), np.inf)


class SafetyMargin:
    """Deviations of what m requests in flight still write, up to any horizon."""

    def __init__(self, remaining: Floats, doubt: Floats, worst: Floats) -> None:
        """``remaining``: (m, q) equally likely remaining tokens of each, ascending. ``doubt``:
        (m,) how little is known of its kind, from 0 to 1. ``worst``: (m,) see `worst_case`."""
        self._remaining, self._doubt, self._worst = remaining, doubt, worst
        self._joined: list[tuple[list[float], float, float]] = []
        self._sums: dict[int, list[float]] = {}

    def add(self, remaining: Floats, doubt: float, worst: float) -> None:
        """Count a request that joins; (q,) ``remaining`` tokens."""
        joined = (remaining.tolist(), doubt, worst)
        self._joined.append(joined)
        for octave, sums in self._sums.items():
            _count(sums, *joined, 2.0**octave)

    def up_to(self, horizon: float) -> float:
        """KV tokens to keep free for what may go wrong within the next ``horizon`` steps."""
        octave = math.ceil(math.log2(min(max(horizon, 1.0), 2.0**62)))
        sums = self._sums.get(octave)
        if sums is None:
            sums = self._sums[octave] = self._sum_up(2.0**octave)
        few = 1 - min((len(self._joined) + self._doubt.size) / MANY, 1.0)
        deviations = DEVIATIONS + MORE_DEVIATIONS * few
        return math.sqrt(max((deviations**2) * sums[0] + sums[1] * sums[1], 0.0))

    def _sum_up(self, horizon: float) -> list[float]:
        cut = np.minimum(self._remaining, horizon)
        deviation = cut.std(axis=1)
        bounded = np.isfinite(self._worst)
        common = np.where(bounded, self._doubt, ALIKE * self._doubt)
        mean = cut.mean(axis=1)
        excess = np.where(bounded, np.minimum(self._worst, horizon) - mean, deviation)
        bias = np.where(deviation > 0, BIAS * mean, 0.0)
        independent = float(((1 - common) * deviation**2).sum())
        sums = [independent, float((common * excess + bias).sum())]
        for joined in self._joined:
            _count(sums, *joined, horizon)
        return sums


def _count(
    sums: list[float], remaining: list[float], doubt: float, worst: float, horizon: float
) -> None:
    """Add one request's independent variance and common deviation to ``sums``."""
    cut = [tokens if tokens < horizon else horizon for tokens in remaining]
    mean = sum(cut) / len(cut)
    variance = 0.0
    for tokens in cut:
        variance += (tokens - mean) ** 2
    variance /= len(cut)
    bounded = worst < math.inf
    common = doubt if bounded else ALIKE * doubt
    sums[0] += (1 - common) * variance
    sums[1] += common * (min(worst, horizon) - mean if bounded else math.sqrt(variance))
    if variance:
        sums[1] += BIAS * mean
