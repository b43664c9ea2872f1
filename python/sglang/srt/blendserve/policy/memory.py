"""The memory of one step: what is in flight, its predicted peak, and what else fits beside it."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.lengths.forecast import LEVELS
from sglang.srt.blendserve.policy.admission import PeakAdmission
from sglang.srt.blendserve.policy.margin import SafetyMargin, worst_case
from sglang.srt.blendserve.policy.step_state import EngineState, Selection
from sglang.srt.blendserve.pool.in_flight import InFlight
from sglang.srt.blendserve.pool.pool_request import PoolRequest

if TYPE_CHECKING:
    from sglang.srt.blendserve.policy.step_policy import StepPolicy

Floats = NDArray[np.float64]


class StepMemory:
    """The requests in flight before a step, and those that have been chosen to join it."""

    def __init__(self, policy: StepPolicy, state: EngineState) -> None:
        self.policy, self.pool, self.state = policy, policy.pool, state
        self.selection = Selection()
        self.spent = 0

    @cached_property
    def in_flight(self) -> InFlight:
        """The requests in flight before the step; to be read before one is started."""
        return self.pool.in_flight()

    @cached_property
    def remaining(self) -> Floats:
        """(m, q) equally likely remaining lengths of the requests in flight."""
        forecast, running = self.pool.forecast, self.in_flight
        if forecast is None or not running.requests:
            return np.zeros((0, LEVELS.size))
        return forecast.remaining(running.indices, running.generated)

    @cached_property
    def admission(self) -> PeakAdmission:
        """The memory that all in flight are predicted to need."""
        running = self.in_flight
        held = running.held_tokens + running.generated
        return self.policy.admission(held, self._until_the_end())

    @cached_property
    def limit(self) -> float:
        """KV tokens that the predicted peak may reach."""
        running = self.in_flight
        # What is not computed yet of a prompt holds no slots yet.
        held = float((running.held_tokens + running.generated).sum()) - self.state.chunk_tokens
        others = self.state.used_slots - held + self.state.online_growth
        return self.pool.kv_slots - max(others, 0.0)

    @cached_property
    def margin(self) -> SafetyMargin:
        """How far the memory in use may exceed the predicted peak."""
        forecast, running = self.pool.forecast, self.in_flight
        if forecast is None:
            return SafetyMargin(self.remaining, np.zeros(0), np.zeros(0))
        worst = self._worst_case(forecast.cap(running.indices), running.generated)
        doubt = forecast.doubt(running.indices)
        return SafetyMargin(self.remaining, doubt, worst, self.policy.bias)

    def _until_the_end(self) -> Floats:
        """(m, q) steps until the requests in flight end: besides those of their output tokens,
        what is left of a partly computed prompt takes some."""
        delay = self._delay(self.state.chunk_tokens)
        if self.state.chunk is None or not delay:
            return self.remaining
        steps = self.remaining.copy()
        steps[self.in_flight.requests.index(self.state.chunk)] += delay
        return steps

    def _delay(self, tokens: int) -> int:
        """Steps before the one that computes the last of ``tokens``, at least."""
        return max(-(-tokens // self.policy.max_tokens) - 1, 0)

    def _must_not_be_late(self) -> bool:
        """Whether a prompt that is computed more slowly than it could be lets memory run short.

        Each step that it takes puts off its end, when others have grown further. That decides
        only where lengths are known.
        """
        forecast, running = self.pool.forecast, self.in_flight
        if forecast is not None and running.requests:
            first = forecast.remaining(running.indices[:1], running.generated[:1])[0]
            if first[0] != first[-1]:
                return False  # mostly so, and found out without a look at all of them
        known = bool((self.remaining[:, 0] == self.remaining[:, -1]).all())
        return known and self.admission.peak + self.state.running > self.limit

    def _fits_beside(
        self, alone: list[tuple[PoolRequest, int]], needs: int, until_end: Floats, limit: float
    ) -> bool:
        """Whether a request that fits does so if the prefixes that one other was ``alone`` with
        stay."""
        tokens = sum(tokens for _, tokens in alone)
        if not alone or self.admission.fits(needs + tokens, until_end, limit):
            return True
        # What the others would have given back at their end stays until this one has ended, too.
        for other, tokens in alone:
            self.admission.share(self._member(other), tokens)
        fits = self.admission.fits(needs, until_end, limit)
        for other, tokens in alone:
            self.admission.share(self._member(other), -tokens)
        return fits

    def _safe(self, limit: float, request: PoolRequest, horizon: float) -> float:
        """``limit`` less the margin for what may go wrong while ``request`` is there.

        ``horizon``: steps until it is expected to end at the latest.
        """
        _, worst = self._doubt(request)
        horizon = worst if horizon < worst < math.inf else horizon
        return min(limit, self.limit - self.margin.up_to(horizon))

    def _doubt(self, request: PoolRequest) -> tuple[float, float]:
        """How little is known of its kind, and how much it may then still write."""
        forecast = self.pool.forecast
        assert forecast is not None
        doubt = forecast.doubt_of(request.index)
        if not doubt:
            return 0.0, math.inf
        lived = np.array([float(request.generated)])
        worst = self._worst_case(forecast.cap([request.index]), lived)
        return doubt, float(worst[0])

    def _worst_case(self, cap: Floats, lived: Floats) -> Floats:
        return worst_case(cap, lived, self.pool.kv_slots, self.policy.caps_held)

    def _member(self, request: PoolRequest) -> int:
        """Number of a request in flight in `admission`."""
        before = self.in_flight.requests
        if request in before:
            return before.index(request)
        return len(before) + self.selection.requests.index(request)
