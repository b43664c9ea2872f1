"""The safety margin of memory admission: how far the memory in use may exceed its expectation.

The predicted peak is an expectation. Among many requests errors cancel; with few in flight, as in a
small KV cache, one that runs long is felt, so the margin follows the standard deviation

    z * sqrt( sum of independent variances + (sum of common standard deviations)^2 )

of what the requests in flight still write. The errors of requests of a kind of which nothing is
known yet are not independent: what they have in common adds up in the second sum.

Only what may go wrong while a new request is there is its concern: lengths are looked at up to its
own, and a request that ends soon is not held up by others whose ends are far off and uncertain.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DEVIATIONS = 1.0
"""Standard deviations that are kept free."""

ALIKE = 0.35
"""Share of the errors that requests of an unknown kind have in common."""


class SafetyMargin:
    """Deviations of what m requests in flight still write, up to any horizon."""

    def __init__(self, remaining: Floats, doubt: Floats) -> None:
        """``remaining``: (m, q) equally likely remaining tokens of each, ascending. ``doubt``:
        (m,) how little is known of its kind, from 0 to 1."""
        self._remaining, self._doubt = remaining, ALIKE * doubt
        self._joined: list[tuple[list[float], float]] = []
        self._sums: dict[int, list[float]] = {}

    def add(self, remaining: Floats, doubt: float) -> None:
        """Count a request that joins; (q,) ``remaining`` tokens."""
        row, doubt = remaining.tolist(), ALIKE * doubt
        self._joined.append((row, doubt))
        for octave, sums in self._sums.items():
            _count(sums, row, doubt, 2.0**octave)

    def up_to(self, horizon: float) -> float:
        """KV tokens to keep free for what may go wrong within the next ``horizon`` steps."""
        octave = math.ceil(math.log2(min(max(horizon, 1.0), 2.0**62)))
        sums = self._sums.get(octave)
        if sums is None:
            sums = self._sums[octave] = self._sum_up(2.0**octave)
        return DEVIATIONS * math.sqrt(max(sums[0] + sums[1] * sums[1], 0.0))

    def _sum_up(self, horizon: float) -> list[float]:
        cut = np.minimum(self._remaining, horizon)
        deviation = cut.std(axis=1)
        sure = 1 - self._doubt
        sums = [float((sure * deviation**2).sum()), float((self._doubt * deviation).sum())]
        for row, doubt in self._joined:
            _count(sums, row, doubt, horizon)
        return sums


def _count(sums: list[float], row: list[float], doubt: float, horizon: float) -> None:
    """Add one request's variance and doubtful deviation to ``sums``."""
    cut = [tokens if tokens < horizon else horizon for tokens in row]
    mean = sum(cut) / len(cut)
    variance = 0.0
    for tokens in cut:
        variance += (tokens - mean) ** 2
    variance /= len(cut)
    sums[0] += (1 - doubt) * variance
    sums[1] += doubt * math.sqrt(variance)
