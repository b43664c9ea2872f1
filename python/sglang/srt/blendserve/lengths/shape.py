"""How output lengths spread around their means: survival curves from finished and running requests.

Lengths are looked at as multiples x = d / m of the expected length m, in bins of equal ratio.
Requests of similar origin and mean form a class. Each class has its own hazards (probability to
end in a bin, having lived up to it) with those of all requests as prior, and these in turn a
log-normal one: the posterior mean of a beta process (Hjort 1990). Running requests count as
survivors of the bins they have lived through, so the long ones among them are not forgotten, as
they would be in a mean over what has finished.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.compiled import INTEGERS, TABLE, VECTOR, compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_PER_OCTAVE = 8
"""Bins for each doubling of a multiple. Unproven."""
_OCTAVES = 7
"""Doublings above the mean, and below it, that have bins: up to 128 times the mean. Unproven."""
BINS = 2 * _OCTAVES * _PER_OCTAVE
"""Bin b holds _EDGES[b] < x <= _EDGES[b + 1]; what is beyond counts in the first or last bin."""
_EDGES: Floats = 2.0 ** (np.arange(-_OCTAVES * _PER_OCTAVE, BINS // 2 + 1) / _PER_OCTAVE)
_WIDTHS: Floats = _EDGES[1:] - _EDGES[:-1]
_CENTRES: Floats = np.sqrt(_EDGES[1:] * _EDGES[:-1])

_PRIOR_SPREAD = 1.0
"""Standard deviation of log(d / m) that is assumed before anything is seen. Unproven."""
_PRIOR_WEIGHT = 2.0
"""Requests that the log-normal prior counts for in each bin. Unproven."""
_POOLED_WEIGHT = 4.0
"""Requests that the hazards of all requests count for in each bin of a class. Unproven."""
_CENTRE_WEIGHT = 0.01
"""Requests that the middle of a bin counts for, against the mean of what ended in it. Unproven."""


def bin_of(multiple: Floats) -> Ints:
    """Bin of each multiple x of the mean (any shape)."""
    with np.errstate(divide="ignore"):
        place = np.ceil(np.log2(multiple) * _PER_OCTAVE - 1e-9) + (BINS // 2 - 1)
    bins: Ints = np.clip(place, 0, BINS - 1).astype(np.int64)
    return bins


def _prior_hazards() -> Floats:
    """(BINS,) hazards of a log-normal distribution of mean 1."""
    z = (np.log(_EDGES) + _PRIOR_SPREAD**2 / 2) / _PRIOR_SPREAD
    above = np.array([math.erfc(v / math.sqrt(2)) / 2 for v in z])
    above[0] = 1.0
    hazards: Floats = 1 - above[1:] / above[:-1]
    return hazards


@dataclass(frozen=True, slots=True)
class LengthShape:
    """Expected totals of requests that have lived for some time, by class."""

    total: Floats
    """(classes * (BINS + 1),) E[x | x > edge], in multiples of the mean, flat for fast look-up."""
    mean: Floats
    """(classes,) E[x]; about 1, more where running requests have outlived the means."""
    square: Floats
    """(classes,) E[x^2] / E[x]^2."""
    ended: Floats
    """(classes * (BINS + 1),) 2 * class + P[x <= edge]: ascending, for one search in all."""

    @classmethod
    def fit(
        cls,
        classes: int,
        ended: Floats,
        ended_class: Ints,
        alive: Floats,
        alive_class: Ints,
    ) -> LengthShape:
        """Curves from ``ended`` requests (multiples at their end) and ``alive`` ones (so far)."""
        events = _count(ended, ended_class, classes)
        centres = (_count(ended, ended_class, classes, ended) + _CENTRE_WEIGHT * _CENTRES) / (
            events + _CENTRE_WEIGHT
        )
        censored = _count(alive, alive_class, classes)
        # Alive at the start of a bin; a running request only for the bins it has left behind.
        risk = np.cumsum((events + censored)[:, ::-1], axis=1)[:, ::-1] - censored
        pooled = _posterior(events.sum(0), risk.sum(0), _prior_hazards(), _PRIOR_WEIGHT)
        return cls._from_hazards(_posterior(events, risk, pooled, _POOLED_WEIGHT), centres)

    @classmethod
    def _from_hazards(cls, hazards: Floats, centres: Floats) -> LengthShape:
        hazards = hazards.copy()
        hazards[:, -1] = 1.0
        survival = np.ones((hazards.shape[0], BINS + 1))
        np.cumprod(1 - hazards, axis=1, out=survival[:, 1:])
        mass = survival[:, :-1] * hazards
        first = _above(mass * centres)
        second = _above(mass * centres**2)
        alive = np.maximum(survival[:, :-1], 1e-300)
        total = np.empty_like(survival)
        total[:, :-1] = np.where(survival[:, :-1] > 1e-12, first / alive, 0)
        total[:, -1] = 0
        # Where nobody ever gets to, a little further still.
        np.maximum(total, _EDGES * 1.05, out=total)
        mean = first[:, 0]
        ended = 2.0 * np.arange(survival.shape[0])[:, None] + (1 - survival)
        return cls(total.ravel(), mean, second[:, 0] / mean**2, ended.ravel())

    def expected_total(self, classes: Ints, unit: Floats, lived: Floats) -> Floats:
        """(m,) E[d | d > lived] of requests that lived for ``lived`` tokens; all (m,), tokens.

        ``unit``: what x = 1 is, tokens; the mean length / `mean` gives E[d] at lived = 0.
        """
        multiple = lived / unit
        with np.errstate(divide="ignore"):
            place = np.log2(multiple) * _PER_OCTAVE + BINS // 2
        place = np.clip(place, 0.0, BINS - 1e-6)
        low = place.astype(np.int64)
        at = classes * (BINS + 1) + low
        below = self.total[at]
        part = place - low
        total = below + part * (self.total[at + 1] - below)
        # Beyond the last edge the expectation grows in proportion.
        result: Floats = unit * total * np.maximum(multiple / _EDGES[-1], 1.0)
        return result

    def quantiles_left(
        self,
        requests: Ints,
        lived: Floats,
        levels: Floats,
        *,
        classes: Ints,
        unit: Floats,
        lower: Floats,
        upper: Floats,
    ) -> Floats:
        """(m, q) quantiles at ``levels`` (q,) of d - lived, at least 1, given d > lived.

        ``requests``, ``lived``: (m,); ``classes``: (m,) theirs. ``unit``, ``lower``, ``upper``:
        (n,) of all requests: what x = 1 is, and the bounds of d, tokens.
        """
        left = np.empty((lived.size, levels.size))
        _quantiles_left(self.ended, requests, lived, levels, classes, unit, lower, upper, left)
        return left


@compiled("void", VECTOR, INTEGERS, VECTOR, VECTOR, INTEGERS, VECTOR, VECTOR, VECTOR, TABLE)
def _quantiles_left(
    ended: Floats,
    requests: Ints,
    lived: Floats,
    levels: Floats,
    classes: Ints,
    unit: Floats,
    lower: Floats,
    upper: Floats,
    left: Floats,
) -> None:
    """Search the survival curves; fills ``left`` as `LengthShape.quantiles_left` returns it."""
    for row in range(lived.size):
        request = requests[row]
        multiple = lived[row] / unit[request]
        place = math.log2(multiple) * _PER_OCTAVE + BINS // 2 if multiple > 0 else 0.0
        place = min(max(place, 0.0), BINS - 1e-6)
        low = int(place)
        curve = ended[classes[row] * (BINS + 1) :][: BINS + 1]
        base = 2.0 * classes[row]
        by_now = curve[low] - base
        by_now += (place - low) * (curve[low + 1] - base - by_now)
        for level in range(levels.size):
            wanted = base + 1 - (1 - by_now) * (1 - levels[level])
            after = min(max(np.searchsorted(curve, wanted), 1), BINS)
            before = curve[after - 1]
            part = (wanted - before) / max(curve[after] - before, 1e-12)
            x = _EDGES[after - 1] + min(max(part, 0.0), 1.0) * _WIDTHS[after - 1]
            total = max(x * unit[request], lived[row], lower[request])
            left[row, level] = max(min(total, upper[request]) - lived[row], 1.0)


def _count(multiple: Floats, classes: Ints, number: int, weights: Floats | None = None) -> Floats:
    """(number, BINS) how many fall into each bin, or the sum of their weights."""
    flat = np.bincount(classes * BINS + bin_of(multiple), weights, number * BINS)
    return np.asarray(flat, dtype=np.float64).reshape(number, BINS)


def _posterior(events: Floats, risk: Floats, prior: Floats, weight: float) -> Floats:
    hazards: Floats = (events + weight * prior) / (np.maximum(risk, events) + weight)
    return hazards


def _above(mass: Floats) -> Floats:
    """Sums of the mass of each bin and all later ones."""
    sums: Floats = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1]
    return sums
