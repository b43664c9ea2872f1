"""What the forecast still knows of requests that were forgotten.

pytest test/lengths/test_forecast_memory.py
"""

from __future__ import annotations

import numpy as np
import pytest

from sglang.srt.blendserve.lengths.estimator import LengthEstimator
from sglang.srt.blendserve.lengths.forecast import LengthForecast


def test_what_is_forgotten_of_a_kind_leaves_no_doubt_behind() -> None:
    """Requests that have ended are forgotten now and then; that their kind is known is not."""
    prompts, caps = np.full(200, 100), np.full(200, 500)
    unknown = np.zeros(200, dtype=np.bool_)
    first = LengthEstimator(prompts, caps, unknown)
    for request in range(200):
        first.observe(request, 40)
    later = LengthEstimator(prompts, caps, unknown, prior=first.prior())
    forecast = LengthForecast(later, caps, unknown)
    forecast.started(0)
    forecast.renew([0], [3])
    assert forecast.doubt_of(1) == 0
    assert forecast.fresh(1).mean() == pytest.approx(40, rel=0.5)
    other = np.full(200, 20_000)
    nothing = LengthEstimator(prompts, other, unknown, prior=first.prior())
    fresh = LengthForecast(nothing, other, unknown)
    fresh.started(0)
    fresh.renew([0], [3])
    assert fresh.doubt_of(1) == 1  # of another kind nothing was seen


def test_a_rare_kind_is_not_forgotten_because_many_of_another_one_end() -> None:
    caps = np.array([16_384] * 4 + [512] * 400)
    prompts, unknown = np.full(404, 50), np.zeros(404, dtype=np.bool_)
    prior = None
    for begin in range(12):
        lengths = LengthEstimator(prompts, caps, unknown, prior=prior)
        for request in range(0 if begin == 0 else 4, 404):
            lengths.observe(request, 3000 if request < 4 else 8)
        prior = lengths.prior()
    forecast = LengthForecast(LengthEstimator(prompts, caps, unknown, prior=prior), caps, unknown)
    forecast.started(0)
    forecast.renew([0], [10])
    assert forecast.doubt_of(1) == 0
    assert prior is not None
    assert prior.predict(np.array([50]), np.array([16_384]))[0] > 600
