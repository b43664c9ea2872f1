"""The memory of one step: what is in flight, its predicted peak, and what else fits beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.lengths.forecast import LEVELS
from sglang.srt.blendserve.policy.admission import PeakAdmission, ReserveAll
from sglang.srt.blendserve.policy.margin import Caution, SafetyMargin
from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.pool.in_flight import InFlight
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.pool.shared_prefixes import KVFootprint

Floats = NDArray[np.float64]


class Candidate:
    """A waiting request as it would stand in memory if it started in this step."""

    __slots__ = (
        "_cached_tokens",
        "_uncached",
        "doubt",
        "footprint",
        "remaining",
        "request",
        "tokens",
        "worst",
    )

    def __init__(
        self,
        request: PoolRequest,
        remaining: Floats,
        doubt: float,
        worst: float,
        footprint: KVFootprint,
        cached_tokens: Callable[[PoolRequest], int],
    ) -> None:
        """``remaining``: (q,) equally likely output tokens that it still has. ``doubt``: how little
        is known of its kind, 0 to 1; ``worst``: how many tokens it may then still write.
        ``cached_tokens``: asks the engine's prefix cache, which takes time and is done once it is
        needed."""
        self.request, self.remaining, self.footprint = request, remaining, footprint
        self.doubt, self.worst = doubt, worst
        self.tokens: int = request.prompt.size + request.generated
        """Tokens of the request before it decodes (again, after a retraction)."""
        self._cached_tokens = cached_tokens
        self._uncached = 0

    @property
    def expected(self) -> float:
        """Mean of `remaining`, tokens."""
        total = 0.0
        for tokens in self.remaining.tolist():  # at a tenth of the cost of numpy's sum of so few
            total += tokens
        return total / self.remaining.size

    @property
    def uncached(self) -> int:
        """Tokens to compute before the request decodes."""
        if not self._uncached:
            # The last one is always computed: its logits give the next output token.
            self._uncached = max(self.tokens - self._cached_tokens(self.request), 1)
        return self._uncached

    @property
    def needs(self) -> int:
        """KV slots that the request takes from others when it starts."""
        return self.footprint.needs(self.uncached, self.request.generated)


class StepMemory:
    """The requests in flight before a step, and those that have been chosen to join it.

    What takes a look at all requests in flight is found out when it is first asked for: when the
    engine can run no more requests, or the pace allows no prefill, most steps ask for none of it.
    """

    def __init__(
        self, pool: RequestPool, state: EngineState, caution: Caution, max_tokens: int
    ) -> None:
        """``max_tokens``: largest prefill of one step."""
        self._pool, self._state, self._caution = pool, state, caution
        self._forecast = pool.current.forecast
        self._max_tokens = max_tokens
        self._joined: list[PoolRequest] = []

    # --- what is in flight --------------------------------------------------------------------

    @cached_property
    def in_flight(self) -> InFlight:
        """The requests in flight before the step; to be read before one is started."""
        return self._pool.table.in_flight()

    @cached_property
    def remaining(self) -> Floats:
        """(m, q) equally likely remaining output tokens of the requests in flight."""
        running = self.in_flight
        if self._forecast is None or not running.requests:
            return np.zeros((0, LEVELS.size))
        return self._forecast.remaining(running.indices, running.generated)

    @cached_property
    def admission(self) -> PeakAdmission:
        """The memory that all in flight are predicted to need, KV tokens."""
        kind = ReserveAll if self._caution.tuning.reserve_all else PeakAdmission
        return kind(self._stored, self._until_the_end())

    @cached_property
    def _stored(self) -> Floats:
        """(m,) KV tokens that the requests in flight hold alone: those of the latest output token
        come with the step that reads it, and a request's last one never has any.

        Where the engine looks at a step before the last one's tokens are known, this is one too few
        for each, and as many slots fewer are taken to be free."""
        running, chunk = self.in_flight, self._state.chunk
        stored: Floats = running.held_tokens + np.maximum(running.generated - 1.0, 0.0)
        if chunk is not None and chunk.generated:  # it computes its own output once more
            stored[running.requests.index(chunk)] += 1.0
        return stored

    @cached_property
    def limit(self) -> float:
        """KV tokens that the predicted peak may reach."""
        # What is not computed yet of a prompt holds no slots yet.
        held = float(self._stored.sum()) - self._state.chunk_tokens
        others = self._state.used_slots - held + self._state.online_growth
        return self._pool.kv_slots - max(others, 0.0)

    @cached_property
    def margin(self) -> SafetyMargin:
        """How far the memory in use may exceed the predicted peak."""
        running = self.in_flight
        if self._forecast is None:
            return SafetyMargin(self.remaining, np.zeros(0), np.zeros(0), self._caution)
        cap, doubt = self._forecast.cap(running.indices), self._forecast.doubt(running.indices)
        counts = self._caution.caps_count(cap, self._pool.kv_slots)
        worst = np.where(counts, np.maximum(cap - running.generated, 1.0), np.inf)
        return SafetyMargin(self.remaining, doubt, worst, self._caution)

    def must_not_be_late(self) -> bool:
        """Whether a prompt that is computed more slowly than it could be lets memory run short.

        Each step that it takes puts off its end, when others have grown further. That decides
        only where lengths are known.
        """
        running = self.in_flight
        if self._forecast is not None and running.requests:
            first = self._forecast.remaining(running.indices[:1], running.generated[:1])[0]
            if first[0] != first[-1]:
                return False  # mostly so, and found out without a look at all of them
        if self._caution.horizon < math.inf:
            return False  # memory may run short later
        known = bool((self.remaining[:, 0] == self.remaining[:, -1]).all())
        return known and self.admission.peak + self._state.running > self.limit

    def _until_the_end(self) -> Floats:
        """(m, q) steps until the requests in flight end: besides those of their output tokens,
        what is left of a partly computed prompt takes some."""
        delay = self._delay(self._state.chunk_tokens)
        if self._state.chunk is None or not delay:
            return self.remaining
        steps = self.remaining.copy()
        steps[self.in_flight.requests.index(self._state.chunk)] += delay
        return steps

    def _delay(self, tokens: int) -> int:
        """Steps before the one that computes the last of ``tokens``, at least."""
        return max(-(-tokens // self._max_tokens) - 1, 0)

    # --- what may join ------------------------------------------------------------------------

    def candidate(self, request: PoolRequest) -> Candidate:
        """``request``, which waits, as it would stand in memory."""
        doubt, worst = self._doubt(request)
        footprint = self._pool.prefixes.footprint(request)
        cached_tokens = self._state.cached_tokens
        return Candidate(request, self._predicted(request), doubt, worst, footprint, cached_tokens)

    def fits(self, one: Candidate, limit: float, room: int) -> bool:
        """Whether the predicted peak stays under ``limit`` and clear of the margin beside ``one``.

        ``limit``: KV tokens, at most `limit`. ``room``: prompt tokens that the step has left.
        """
        least = one.footprint.needs(1, one.request.generated)
        ends = one.remaining
        if not self._caution.tuning.reserve_all:
            # Later its slots have paid for being computed again.
            ends = np.minimum(ends, self._caution.horizon)
        most = min(limit, self.limit - self._margin_beside(one, float(ends[-1])))
        # A look-up is saved where it does not fit however much of it is cached.
        if not self.admission.fits(least, ends, most):
            return False
        delay = self._delay_of(one, room)
        if delay:
            ends = ends + delay
            most = min(limit, self.limit - self._margin_beside(one, float(ends[-1])))
        needs = max(one.uncached, least)
        tried = not delay and needs == least
        if not (tried or self.admission.fits(needs, ends, most)):
            return False
        if not one.footprint.newly_shared:
            return True
        return self._fits_as_prefixes_stay(one.footprint, needs, ends, most)

    def join(self, one: Candidate, room: int) -> None:
        """Count ``one``, which joins the step; before the pool knows that it has started.

        ``room``: prompt tokens that the step has left for it.
        """
        if one.footprint.newly_shared:
            self._retain(one.footprint)
        delay = self._delay_of(one, room)
        self.admission.add(one.needs, one.remaining + delay if delay else one.remaining)
        self.margin.add(one.remaining, one.doubt, one.worst)
        self._joined.append(one.request)

    def _delay_of(self, one: Candidate, room: int) -> int:
        """Steps before the one that computes the last of its prompt.

        What a step's last prompt leaves to the next one makes it end later. That decides only where
        lengths are known, and is a look-up in the prefix cache.
        """
        most = self._max_tokens
        first = min(room, most) if one.request.known_length else most
        if one.tokens <= first:
            return 0
        return max(-((first - one.uncached) // most), 0)

    def _predicted(self, request: PoolRequest) -> Floats:
        """(q,) equally likely remaining lengths, tokens."""
        assert self._forecast is not None
        if not request.generated:
            return self._forecast.fresh(request.index)
        left = self._forecast.remaining([request.index], [float(request.generated)])
        return np.asarray(left[0], dtype=np.float64)

    def _margin_beside(self, one: Candidate, horizon: float) -> float:
        """KV tokens to keep free for what may go wrong while ``one`` is there.

        ``horizon``: steps until it is expected to end at the latest, or has paid for itself. Where
        nothing is known of its kind it is looked at up to its cap all the same: learning is not to
        begin with a flood.
        """
        return self.margin.up_to(one.worst if horizon < one.worst < math.inf else horizon)

    def _doubt(self, request: PoolRequest) -> tuple[float, float]:
        """How little is known of its kind, 0 to 1, and how many tokens it may then still write."""
        assert self._forecast is not None
        doubt = self._forecast.doubt_of(request.index)
        if not doubt:
            return 0.0, math.inf
        cap = float(self._forecast.cap(request.index))
        if not self._caution.caps_count(cap, self._pool.kv_slots):
            return doubt, math.inf
        return doubt, max(cap - request.generated, 1.0)

    def _fits_as_prefixes_stay(
        self, footprint: KVFootprint, needs: int, ends: Floats, limit: float
    ) -> bool:
        """Whether a request that fits does so if the prefixes stay that it begins to share.

        Their one user so far would have given them back at its end; they stay until the new
        request has ended, too.
        """
        tokens = sum(tokens for _, tokens in footprint.newly_shared)
        if not tokens or self.admission.fits(needs + tokens, ends, limit):
            return True
        self._retain(footprint)
        fits = self.admission.fits(needs, ends, limit)
        self._retain(footprint, -1)
        return fits

    def _retain(self, footprint: KVFootprint, sign: int = 1) -> None:
        for other, tokens in footprint.newly_shared:
            self.admission.retain(self._member(other), sign * tokens)

    def _member(self, request: PoolRequest) -> int:
        """Number of a request in flight in `admission`."""
        before = self.in_flight.requests
        if request in before:
            return before.index(request)
        return len(before) + self._joined.index(request)
