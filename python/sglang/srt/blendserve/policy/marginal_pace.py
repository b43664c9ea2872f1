"""The pace: prompt tokens go into the steps where they add least time.

How long a step takes is no straight line over its prompt tokens. The first ones are nearly free
while the weights are loaded, a matrix product jumps where its tiles are full, and two lanes cost
their price with the first prompt token. Over the steps that are left a given number of prompt
tokens is computed in the least time if each step lies on the lower convex hull of that curve: with
as many tokens as fall to a step on average, or, where that is not a point of the hull, with the
next ones below and above in turn.

How many fall to a step depends on how many steps are left: as many as a full cache needs to be
read, or more, where a smaller step of the same blend costs no more for each token.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from sglang.srt.blendserve.policy.full_step import FullStep, FullSteps
from sglang.srt.blendserve.policy.pace import PrefillBudget, Rest, StepLoad

_NEAR = 0.005
"""How far a step may lie above the hull, as a part of its time, to count as on it. Unproven."""

_FREE = 0.02
"""What prompt tokens may add to a step's time, as a part of it, to count as free; and by how much
the least time of a token may be exceeded. Unproven."""

_FINE, _FINE_UP_TO, _COARSE = 32, 1024, 128
"""Tokens of a step, decodes included, that are looked at: multiples, as tiles of kernels are."""

_PER_OCTAVE = 4
"""Steps are nearly alike within so many parts of a factor of two, of prompt tokens and of
decodes."""

_DECODES, _READS = 16, 8
"""Decodes, and parts of the KV cache, for which steps are taken to have one shape."""


class _Shape(NamedTuple):
    """What is known of steps with so many decodes."""

    totals: list[int]
    """Tokens of steps on the hull, decodes included, ascending; the first has no prompt token."""
    least: int
    """Prompt tokens up to which no smaller number is cheaper for each."""


class MarginalPace:
    """Spreads the remaining prompt tokens over the remaining steps, where they add least time.

    The steps that are left are the remaining KV reads over those of a full cache, so that memory
    fills at the pace that it will need and not at the one that a cache not yet full suggests; more
    of them where a full cache is worth nothing (`FullSteps.enough`). On
    average no step gets fewer than are free, or than make a token cheapest: sooner costs no more,
    and what is begun sooner ends sooner.

    Sizes count the decodes of the engine, online ones too. Of the compute that is left for each
    step, that of the decodes now running is taken off; a little too little while few run.
    """

    def __init__(self, full_steps: FullSteps) -> None:
        """``full_steps``: of the engine that is paced."""
        self._full_steps, self._steps = full_steps, full_steps.steps
        self._kv_slots, self._max_tokens = full_steps.kv_slots, full_steps.max_tokens
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._enough: dict[tuple[int, int], float] = {}
        self._owed = 0.0
        """Prompt tokens by which the last steps fell short of the average."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """Return the prompt tokens of the step, on either side of the scan."""
        if load.running == 0 or not rest.memory > 0:
            return PrefillBudget(self._max_tokens, self._max_tokens)
        tokens = self._tokens(self._shape(load), load, self._average(load, rest))
        return PrefillBudget(tokens, tokens)

    def _tokens(self, shape: _Shape, load: StepLoad, average: float) -> int:
        """The size of the step: the next one on the hull below or above what is wanted."""
        totals, running, most = shape.totals, load.running, self._max_tokens
        # Sizes were found beside some more decodes, in whose place prompt tokens go.
        wanted = max(average, shape.least + totals[0] - running)
        if wanted >= most:
            return most
        at = max(bisect_right(totals, running + wanted), 1)
        below = totals[at - 1] - running if at > 1 else 0
        above = min(totals[at] - running, most)
        gap = above - below
        self._owed = min(self._owed + wanted - below, 2.0 * gap)
        # A prompt that has begun holds memory: it is not left lying.
        if 2 * self._owed >= gap or (load.begun and not below):
            self._owed = max(self._owed - gap, -gap)
            return above
        return below

    def _average(self, load: StepLoad, rest: Rest) -> float:
        """Prompt tokens that fall to a step, with no more memory full than is worth it."""
        full = self._full_steps.of(load, rest)
        if not (0 < full.prompt_tokens < math.inf and 0 < full.decodes < math.inf):
            return full.prompt_tokens
        return full.prompt_tokens * self._part(full)

    def _part(self, full: FullStep) -> float:
        """`FullSteps.enough`, found once for steps that are nearly alike."""
        key = _octaves(full.prompt_tokens), _octaves(full.decodes)
        if key not in self._enough:
            tokens, decodes = (2.0 ** (of / _PER_OCTAVE) for of in key)
            alike = FullStep(tokens, decodes, full.kv_tokens)
            self._enough[key] = self._full_steps.enough(alike)
        return self._enough[key]

    def _shape(self, load: StepLoad) -> _Shape:
        # Rounded up: a step of the tokens found is then never one tile too large.
        decodes = -(-load.running // _DECODES) * _DECODES
        reads = min(int(load.kv_tokens / self._kv_slots * _READS), _READS)
        key = decodes, reads
        if key not in self._shapes:
            self._shapes[key] = self._found(decodes, reads / _READS * self._kv_slots)
        return self._shapes[key]

    def _found(self, decodes: int, kv_tokens: float) -> _Shape:
        """Look at steps of all sizes beside so many decodes."""
        most = decodes + self._max_tokens
        coarse = range(_FINE_UP_TO + _COARSE, most, _COARSE)
        sizes = (*range(_FINE, _FINE_UP_TO + 1, _FINE), *coarse, most)
        totals = [decodes, *sorted({size for size in sizes if decodes < size <= most})]
        seconds = [self._steps(total - decodes, decodes, kv_tokens) for total in totals]
        hull = _lower_hull(totals, seconds)
        near = [
            total
            for total, time, least in zip(totals, seconds, hull, strict=True)
            if time <= least * (1 + _NEAR)
        ]
        return _Shape(near, _cheapest(totals, seconds))


def _octaves(number: float) -> int:
    return round(_PER_OCTAVE * math.log2(min(max(number, 1.0), 2.0**40)))


def _lower_hull(x: list[int], y: list[float]) -> list[float]:
    """The lower convex hull of points with ascending ``x``, at each of them."""
    corners: list[int] = []
    for at in range(len(x)):
        while len(corners) > 1:
            first, last = corners[-2:]
            if (y[last] - y[first]) * (x[at] - x[first]) < (y[at] - y[first]) * (
                x[last] - x[first]
            ):
                break
            corners.pop()
        corners.append(at)
    hull = [y[0]]
    for first, last in pairwise(corners):
        slope = (y[last] - y[first]) / (x[last] - x[first])
        hull += [y[first] + slope * (x[at] - x[first]) for at in range(first + 1, last + 1)]
    return hull


def _cheapest(totals: list[int], seconds: list[float]) -> int:
    """Prompt tokens that are free, or fewest of those that add least time each."""
    alone = seconds[0]
    points = [
        (total - totals[0], time - alone)
        for total, time in zip(totals[1:], seconds[1:], strict=True)
    ]
    least = min((more / tokens for tokens, more in points), default=0.0)
    cheapest = (t for t, more in points if more <= (1 + _FREE) * max(least, 0.0) * t)
    free = (t for t, more in points if more <= _FREE * alone)
    return max(next(cheapest, 0), max(free, default=0))
