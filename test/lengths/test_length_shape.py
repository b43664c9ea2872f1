"""Quantiles of remaining lengths, against the same curves read with `np.interp`."""

import numpy as np
import pytest

from sglang.srt.blendserve.lengths import shape as length_shape
from sglang.srt.blendserve.lengths.shape import BINS, LengthShape


def test_quantiles_are_read_off_the_curve_of_those_who_live_on() -> None:
    rng = np.random.default_rng(0)
    multiples, classes = rng.lognormal(0, 1, 400), rng.integers(0, 2, 400)
    none = np.zeros(0)
    shape = LengthShape.fit(2, multiples, classes, none, none.astype(np.int64))
    levels = np.array([0.1, 0.5, 0.9])
    unit, lived = np.array([80.0, 80.0, 300.0]), np.array([0.0, 93.0, 411.0])
    kind = np.array([0, 1, 1])
    everyone, lower, upper = np.arange(3), np.zeros(3), np.array([np.inf, np.inf, 700.0])
    found = shape.quantiles_left(
        everyone, lived, levels, classes=kind, unit=unit, lower=lower, upper=upper
    )
    edges = length_shape._EDGES
    for row, (at, one, so_far) in enumerate(zip(kind, unit, lived, strict=True)):
        ended = shape.ended[at * (BINS + 1) :][: BINS + 1] - 2.0 * at
        now = np.interp(np.log(max(so_far / one, edges[0])), np.log(edges), ended)
        expected = np.interp(now + (1 - now) * levels, ended, edges) * one
        expected = np.minimum(np.maximum(expected, so_far), upper[row])
        assert found[row] == pytest.approx(np.maximum(expected - so_far, 1.0))
