"""What the forecast still knows of requests that were forgotten.

pytest test/lengths/test_forecast_memory.py
"""

from __future__ import annotations

import numpy as np
import pytest
from pools import COST

from sglang.srt.blendserve.lengths.estimator import LengthEstimator
from sglang.srt.blendserve.lengths.forecast import LengthForecast
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool


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


def test_those_that_run_on_are_not_taken_for_the_rule_when_the_others_are_forgotten() -> None:
    """A window fills with short outputs again and again. Of the long ones of another kind, which
    started together, the shorter end first; the longest are left, beside nothing but short ones."""
    lengths = 2000 * np.random.default_rng(0).lognormal(-0.4, 0.9, 60)
    pool = RequestPool(COST, 200_000, rules=PlanningRules(least_ended=64))
    ends: dict[str, float] = {}

    def arrive(cap: int, tokens: float) -> PoolRequest:
        prompt = np.array([len(ends), *range(40)], dtype=np.int32)
        request = PoolRequest(str(len(ends)), prompt, cap)
        ends[request.rid] = tokens
        pool.add(request)
        return request

    long_ones = [arrive(16_384, tokens) for tokens in lengths.tolist()]
    pool.plan_if_due(quiet=True)
    for request in long_ones[:40]:
        pool.start(request)
    told = []
    for _ in range(40):  # 100 steps of the engine each
        for request in [arrive(512, 20) for _ in range(40)]:
            pool.start(request)
            pool.finish(request, 20)
        for request in [*pool.table.running.values()]:
            request.generated += 100
            if request.generated >= ends[request.rid]:
                pool.finish(request, request.generated)
        pool.plan_if_due(quiet=True)
        assert pool.current.forecast is not None
        told.append(float(pool.current.forecast.fresh(long_ones[-1].index).mean()))
    assert max(told[20:]) < 1.5 * lengths.mean()
