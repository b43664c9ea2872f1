"""The safety margin of memory admission: how far the memory in use may exceed its expectation.

The predicted peak is an expectation. Among many requests errors cancel; with few in flight, as in a
small KV cache, one that runs long is felt, so the margin follows the standard deviation

    z * sqrt( sum of independent variances + (sum of common standard deviations)^2 )

of what the requests in flight still write. The errors of requests of a kind of which nothing is
known yet are not independent: what they have in common adds up in the second sum.

Where the memory holds many requests at their caps, requests of such a kind are even counted with
their caps: that costs little, and learning does not begin with a flood. Where it does not, a cap
says nothing, and the memory that it would keep empty costs more than the retractions it spares.

Only what may go wrong while a new request is there is its concern: lengths are looked at up to its
own, and a request that ends soon is not held up by others whose ends are far off and uncertain.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.compiled import NUMBER, TABLE, VECTOR, compiled
from sglang.srt.blendserve.policy.pace import rise

Floats = NDArray[np.float64]

DEVIATIONS, MORE_DEVIATIONS, MANY = 1.0, 2.0, 32
"""Standard deviations that are kept free beside many requests, how many more beside few, and from
how many on they are many: a retraction then costs little of the work in flight."""

ALIKE = 0.35
"""Share of the errors that requests of an unknown kind have in common."""

BIAS, MORE_BIAS = 0.1, 0.4
"""Error of the mean of lengths that are not known, as a share: it does not cancel among many. And
what is added where compute is the scarcer resource: memory that stays empty then costs little, but
one that outputs fill beyond expectation stops the prompts, on which the end of the run depends."""

_NEARLY_SCARCE_FROM, _NEARLY_SCARCE_WIDTH = 0.6, 0.3
"""Ratio of the remaining compute to the memory traffic (`pacing.compute_scarcity`) from which that
is added, and the range over which it grows."""

_FLOW_FROM, _FLOW_WIDTH = 0.4, 0.3
"""The same for the share of prompts among the tokens of a step: where few are computed, decodes are
what keeps compute busy, and they need the memory."""

MANY_CAPS, SOME_CAPS = 16.0, 5.0
"""How many times the memory must hold a request at its cap for unknown kinds to count with it,
and where compute is the scarcer resource: there memory that stays empty costs less."""


def caps_held(scarcity: float) -> float:
    """How many of them, where compute is scarce to this degree (`pacing.compute_scarcity`)."""
    scarce = rise(scarcity, _NEARLY_SCARCE_FROM, _NEARLY_SCARCE_WIDTH)
    return MANY_CAPS + (SOME_CAPS - MANY_CAPS) * scarce


def worst_case(cap: Floats, lived: Floats, slots: int, held: float) -> Floats:
    """(m,) tokens that requests of an unknown kind may still write; infinite: no use to count.

    ``cap``: (m,) most output tokens; ``lived``: (m,) those so far; ``slots``: of the KV cache;
    ``held``: see `caps_held`.
    """
    return np.where(held * cap <= slots, np.maximum(cap - lived, 1.0), np.inf)


def likely_bias(scarcity: float, prefill_share: float) -> float:
    """The error of mean lengths to allow for, where compute is scarce to this degree.

    ``prefill_share``: of the tokens of a step, those of prompts: it is their flow that is kept up.
    """
    scarce = rise(scarcity, _NEARLY_SCARCE_FROM, _NEARLY_SCARCE_WIDTH)
    return BIAS + MORE_BIAS * scarce * rise(prefill_share, _FLOW_FROM, _FLOW_WIDTH)


class SafetyMargin:
    """Deviations of what m requests in flight still write, up to any horizon."""

    def __init__(
        self, remaining: Floats, doubt: Floats, worst: Floats, share: float = BIAS
    ) -> None:
        """``remaining``: (m, q) equally likely remaining tokens of each, ascending. ``doubt``:
        (m,) how little is known of its kind, from 0 to 1. ``worst``: (m,) see `worst_case`.
        ``share``: see `likely_bias`."""
        self._bias = share
        self._remaining = np.ascontiguousarray(remaining, dtype=np.float64)
        self._doubt = np.ascontiguousarray(doubt, dtype=np.float64)
        self._worst = np.ascontiguousarray(worst, dtype=np.float64)
        self._joined: list[tuple[Floats, float, float]] = []
        self._sums: dict[int, tuple[float, float]] = {}

    def add(self, remaining: Floats, doubt: float, worst: float) -> None:
        """Count a request that joins; (q,) ``remaining`` tokens."""
        self._joined.append((remaining, doubt, worst))
        for octave in self._sums:
            self._count(octave, remaining, doubt, worst)

    def up_to(self, horizon: float) -> float:
        """KV tokens to keep free for what may go wrong within the next ``horizon`` steps."""
        octave = math.ceil(math.log2(min(max(horizon, 1.0), 2.0**62)))
        if octave not in self._sums:
            self._sums[octave] = _sum_up(
                self._remaining, self._doubt, self._worst, self._bias, 2.0**octave
            )
            for joined in self._joined:
                self._count(octave, *joined)
        variance, common = self._sums[octave]
        few = 1 - min((len(self._joined) + self._doubt.size) / MANY, 1.0)
        deviations = DEVIATIONS + MORE_DEVIATIONS * few
        return math.sqrt(max((deviations**2) * variance + common * common, 0.0))

    def _count(self, octave: int, remaining: Floats, doubt: float, worst: float) -> None:
        variance, common = self._sums[octave]
        more_variance, more_common = _one(remaining, doubt, worst, self._bias, 2.0**octave)
        self._sums[octave] = variance + more_variance, common + more_common


@compiled("UniTuple(float64, 2)", VECTOR, NUMBER, NUMBER, NUMBER, NUMBER)
def _one(
    remaining: Floats, doubt: float, worst: float, bias: float, horizon: float
) -> tuple[float, float]:
    """One request's independent variance and common deviation up to ``horizon``."""
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
    common = doubt if bounded else ALIKE * doubt
    deviation = common * (min(worst, horizon) - mean if bounded else math.sqrt(variance))
    if variance > 0:
        deviation += bias * mean
    return (1 - common) * variance, deviation


@compiled("UniTuple(float64, 2)", TABLE, VECTOR, VECTOR, NUMBER, NUMBER)
def _sum_up(
    remaining: Floats, doubt: Floats, worst: Floats, bias: float, horizon: float
) -> tuple[float, float]:
    """The sums over m requests."""
    variance = common = 0.0
    for request in range(doubt.size):
        more = _one(remaining[request], doubt[request], worst[request], bias, horizon)
        variance += more[0]
        common += more[1]
    return variance, common
