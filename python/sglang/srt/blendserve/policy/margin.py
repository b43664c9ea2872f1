"""The safety margin of memory admission: how far the memory in use may exceed its expectation.

The predicted peak is an expectation. Among many requests errors cancel; with few in flight, as in a
small KV cache, one that runs long is felt, so the margin follows the standard deviation

    sqrt( z^2 * sum of independent variances + (sum of common standard deviations)^2 )

of what the requests in flight still write. The errors of requests of a kind of which nothing is
known yet are not independent: what they have in common adds up in the second sum.

How many deviations z are kept has a price. A slot that stays empty earns nothing in all the steps
to the horizon; one too few, and the request that started last is computed again. So memory may run
short as often as the first costs of the second: short answers leave a margin, long ones hardly any.
By the same price a request may start although memory will run short later, if by then its slots
have earned what it costs to compute them again. SGLang gives back the requests with the fewest
output tokens first, so it is the last ones that pay.

Where the memory holds many requests at their caps, requests of such a kind are even counted with
their caps: that costs little, and learning does not begin with a flood. Where it does not, a cap
says nothing, and the memory that it would keep empty costs more than the retractions it spares.

Only what may go wrong while a new request is there is its concern: lengths are looked at up to its
own, or as far as it must fit, and a request that ends soon is not held up by others whose ends are
far off and uncertain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.compiled import NUMBER, TABLE, VECTOR, compiled
from sglang.srt.blendserve.policy.tuning import Tuning

Floats = NDArray[np.float64]

_NORMAL = NormalDist()


class Caution:
    """How cautious the margin is."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.slot_price = 0.0
        """What a KV slot earns in a step, over what it costs to compute its token again; found anew
        with each partition of the memory (`FullSteps.slot_price`)."""

    @property
    def horizon(self) -> float:
        """Steps after which the slots of a request have paid for being computed again, at least 1:
        they have earned `Tuning.earned` times that."""
        if not self.slot_price > 0:
            return math.inf
        return max(self.tuning.earned / self.slot_price, 1.0)

    def deviations(self, horizon: float) -> float:
        """Standard deviations to keep free for the next ``horizon`` steps."""
        risk = min(max(self.slot_price * horizon, self.tuning.least_risk), 0.5)
        return _NORMAL.inv_cdf(1 - risk)

    def caps_count(self, cap: Floats | float, slots: int) -> Any:
        """Whether requests of an unknown kind count with what they may at most still write.

        ``cap``: their most output tokens, (m,) or one; ``slots``: of the KV cache. Returns (m,) or
        one truth.
        """
        return self.tuning.many_caps * cap <= slots


@dataclass(slots=True)
class _Sums:
    """Sums over the requests in flight and the first so many that ``joined``."""

    variance: float
    common: float
    joined: int = 0


class SafetyMargin:
    """Deviations of what m requests in flight still write, up to any horizon."""

    def __init__(self, remaining: Floats, doubt: Floats, worst: Floats, caution: Caution) -> None:
        """``remaining``: (m, q) equally likely remaining tokens of each, ascending. ``doubt``:
        (m,) how little is known of its kind, from 0 to 1. ``worst``: (m,) tokens that it may at
        most still write if it is of an unknown kind; infinite: its cap does not count
        (`Caution.caps_count`)."""
        self._tuning = caution.tuning
        self._caution = caution
        self._remaining: Floats = np.asarray(remaining, dtype=np.float64, order="C")
        self._doubt: Floats = np.asarray(doubt, dtype=np.float64, order="C")
        self._worst: Floats = np.asarray(worst, dtype=np.float64, order="C")
        self._joined: list[tuple[Floats, float, float]] = []
        self._sums: dict[int, _Sums] = {}  # by octave of the horizon

    def add(self, remaining: Floats, doubt: float, worst: float) -> None:
        """Count a request that joins; (q,) ``remaining`` tokens."""
        self._joined.append((remaining, doubt, worst))

    def up_to(self, horizon: float) -> float:
        """KV tokens to keep free for what may go wrong within the next ``horizon`` steps."""
        octave = math.ceil(math.log2(min(max(horizon, 1.0), 2.0**62)))
        sums = self._sums.get(octave)
        if sums is None:
            sums = self._sums[octave] = self._sum_up(octave)
        if sums.joined < len(self._joined):
            self._count_joined(octave, sums)
        variance, common = sums.variance, sums.common
        tuning = self._tuning
        few = 1 - min((len(self._joined) + self._doubt.size) / tuning.many, 1.0)
        deviations = self._caution.deviations(horizon) + tuning.more_deviations * few
        return math.sqrt(max((deviations**2) * variance + common * common, 0.0))

    def _sum_up(self, octave: int) -> _Sums:
        """The sums up to a horizon of 2^``octave``, of all that were there before."""
        errors = self._tuning.bias, self._tuning.alike, 2.0**octave
        return _Sums(*_sum_up(self._remaining, self._doubt, self._worst, *errors))

    def _count_joined(self, octave: int, sums: _Sums) -> None:
        """Add those that have joined and are not among the ``sums`` yet."""
        errors = self._tuning.bias, self._tuning.alike, 2.0**octave
        for joined in self._joined[sums.joined :]:
            variance, common = _one(*joined, *errors)
            sums.variance += variance
            sums.common += common
        sums.joined = len(self._joined)


@compiled("UniTuple(float64, 2)", VECTOR, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER)
def _one(
    remaining: Floats, doubt: float, worst: float, bias: float, alike: float, horizon: float
) -> tuple[float, float]:
    """One request's independent variance and common deviation up to ``horizon``, tokens."""
    parts = remaining.size
    mean = 0.0
    for part in range(parts):
        mean += min(remaining[part], horizon)
    mean /= parts
    variance = 0.0
    for part in range(parts):
        variance += (min(remaining[part], horizon) - mean) ** 2
    variance /= parts
    bounded = worst < math.inf
    common = doubt if bounded else alike * doubt
    deviation = common * (min(worst, horizon) - mean if bounded else math.sqrt(variance))
    if variance > 0:
        deviation += bias * mean
    return (1 - common) * variance, deviation


@compiled("UniTuple(float64, 2)", TABLE, VECTOR, VECTOR, NUMBER, NUMBER, NUMBER)
def _sum_up(
    remaining: Floats, doubt: Floats, worst: Floats, bias: float, alike: float, horizon: float
) -> tuple[float, float]:
    """Independent variance and common deviation of m requests, added up."""
    variance = common = 0.0
    for request in range(doubt.size):
        more = _one(remaining[request], doubt[request], worst[request], bias, alike, horizon)
        variance += more[0]
        common += more[1]
    return variance, common
