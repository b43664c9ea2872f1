"""How long a step will take on this engine: learned from the steps that it has run.

The policy's pace looks at the shape of a step's time alone (`step_seconds`). Latency targets need
seconds, the fixed cost of a step and of a decoding request included, for steps with one request as
well as for full ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel

Floats = NDArray[np.float64]

_KEPT = 0.9
"""What an earlier step counts beside the next of its kind: the last 10 or so count. Unproven."""

_DOUBT = 2.0
"""Steps of a kind before it counts half. Unproven."""

_OWN = 0.3
"""Weight of the latest step in how far steps of its kind are from the fit. Unproven."""

_PRIOR = 0.01
"""Weight of the assumption that all work is equally slow, beside what was seen. Unproven."""

_FIRST_STEPS = 8
"""Steps that are taken in whatever they took, so that there is something to compare with."""

_OUTLIER, _BELIEVED = 4.0, 8
"""A step this many times longer than expected did something else as well: it is left out, unless
so many in a row are: all that was learned before is then forgotten. Unproven."""

_REFIT = 16
"""Steps between two fits, once there have been so many."""

_SWEEPS = 60
"""Rounds of coordinate descent: four unknowns settle in fewer."""


class StepLoad(NamedTuple):
    """What one step computes."""

    prefill: float = 0.0
    """Compute of its prompt tokens by the cost model, seconds."""
    decodes: int = 0
    """Requests that decode one token."""
    kv_tokens: float = 0.0
    """KV tokens that they read."""
    prompt_tokens: int = 0
    """Prompt tokens that it computes."""


class StepTimes:
    """Least squares of step seconds over fixed cost, prefill, decoding requests and KV reads.

    Relative errors count, and steps of each kind (so many prompt tokens, so many decodes) count
    alike however many of them there were: what a step with one request takes is remembered while
    thousands of full ones run. No factor is negative. How far the steps of a kind are from this
    sum is remembered as well: few rows are multiplied otherwise than one or many.
    """

    def __init__(self, cost: CostModel) -> None:
        """``cost``: predicts the steps until some were seen, and says what they hold."""
        self._cost = cost
        self._fixed = max(float(cost.weights_seconds(1)), 1e-9)
        self._decode = float(cost.decode_compute_seconds(1))
        self._read = float(cost.kv_read_seconds(1))
        self._kinds: dict[tuple[int, int], tuple[Floats, Floats, float]] = {}
        self._beyond: dict[tuple[int, int], tuple[Floats, float]] = {}
        """Of each kind the work and the seconds of the latest steps, added up."""
        self.factors: Floats = np.ones(4)
        """Measured over predicted seconds: fixed cost, prefill, decodes, KV reads."""
        self.steps = 0
        self._unexpected = 0

    def add(self, load: StepLoad, seconds: float) -> None:
        """Take in a step and how long it took (seconds)."""
        if not seconds > 0:
            return
        row = self._row(load)
        kind = _kind(load)
        strange = self.steps >= _FIRST_STEPS and seconds > _OUTLIER * self.seconds(load)
        self._unexpected = self._unexpected + 1 if strange else 0
        if strange and self._unexpected < _BELIEVED:
            return
        if strange:
            # What was learned is of another engine, or of a machine that was less busy.
            self._kinds.clear()
            self._beyond.clear()
            self._unexpected = 0
        relative = row / seconds
        products, targets, weight = self._kinds.get(kind, (0.0, 0.0, 0.0))
        self._kinds[kind] = (
            _KEPT * products + np.outer(relative, relative),
            _KEPT * targets + relative,
            _KEPT * weight + 1,
        )
        work, took = self._beyond.get(kind, (0.0, 0.0))
        self._beyond[kind] = (1 - _OWN) * work + row, (1 - _OWN) * took + seconds
        self.steps += 1
        if strange or self.steps < _REFIT or self.steps % _REFIT == 0:
            self._fit()

    def seconds(self, load: StepLoad) -> float:
        """Return how long a step of ``load`` is expected to take."""
        summed = float(self._row(load) @ self.factors)
        seen = self._beyond.get(_kind(load))
        if seen is None:
            return summed
        expected = float(seen[0] @ self.factors)
        return summed * seen[1] / expected if expected > 0 else summed

    def prefill_seconds(self, tokens: float, context: float) -> float:
        """Return the compute of prompt tokens behind ``context`` others, by the cost model."""
        return float(self._cost.prefill_seconds(tokens, context))

    def prefill_tokens(self, seconds: float, context: float) -> int:
        """Return how many prompt tokens behind ``context`` others add at most ``seconds``."""
        sample = 64.0
        token = float(self._cost.prefill_seconds(sample, context)) / sample * self.factors[1]
        return int(min(max(seconds, 0.0) / max(token, 1e-12), 1e9))

    def _row(self, load: StepLoad) -> Floats:
        return np.array(
            [
                self._fixed,
                load.prefill,
                self._decode * load.decodes,
                self._read * load.kv_tokens,
            ]
        )

    def _fit(self) -> None:
        products, targets = np.zeros((4, 4)), np.zeros(4)
        for of_kind, target, weight in self._kinds.values():
            share = 1 / (weight + _DOUBT)
            products += share * of_kind
            targets += share * target
        # If all work were equally slow, this would be how slow.
        ones = np.ones(4)
        common = float(targets @ ones) / float(ones @ products @ ones)
        prior = _PRIOR * (np.diag(products) + 1e-3 * np.trace(products))
        products[np.diag_indices(4)] += prior
        targets += prior * common
        found = np.full(4, common)
        for _ in range(_SWEEPS):
            for at in range(4):
                rest = targets[at] - products[at] @ found + products[at, at] * found[at]
                found[at] = max(rest / products[at, at], 0.0)
        self.factors = found


def _kind(load: StepLoad) -> tuple[int, int]:
    """Steps that are alike: prompt tokens in octaves; decodes one by one, from 8 on in quarters of
    octaves."""
    decodes = load.decodes if load.decodes <= 8 else int(4 * np.log2(load.decodes)) - 4
    return load.prompt_tokens.bit_length(), decodes
