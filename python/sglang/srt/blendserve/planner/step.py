"""One choice of the step policy: returned requests, the memory-bound end, the compute-bound end."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.planner.admission import PeakAdmission
from sglang.srt.blendserve.planner.cost_model import density
from sglang.srt.blendserve.planner.in_flight import InFlight
from sglang.srt.blendserve.planner.outlook import LEVELS
from sglang.srt.blendserve.planner.pacing import (
    PrefillBudget,
    RemainingWork,
    RestOnDemand,
    StepLoad,
    compute_scarcity,
)
from sglang.srt.blendserve.planner.pool_request import PoolRequest
from sglang.srt.blendserve.planner.safety_margin import SafetyMargin
from sglang.srt.blendserve.planner.scanner import Side, memory_partition
from sglang.srt.blendserve.planner.step_state import EngineState, Selection

if TYPE_CHECKING:
    from sglang.srt.blendserve.planner.step_policy import StepPolicy

Floats = NDArray[np.float64]

_END_WINDOW = 512
"""Requests at each end whose density stands for that end."""

_LEAST_SHARE, _MOST_SHARE = 0.15, 0.5
"""Share of the memory kept for the compute-bound end, and for long outputs that outgrow their
predictions and would stop its flow for thousands of steps; what is not used stays empty."""

_SCARCE_SHARE, _SCARCE_FROM, _SCARCE_WIDTH = 0.1, 0.9, 0.2
"""Kept besides where compute is the scarcer resource (memory that is not full then costs no time),
and the ratio of the remaining work from and over which it becomes so."""

_SHARE_STEPS = 16
"""Steps for which the partition of the memory is kept."""

_LOOK_AHEAD = 64
"""Requests from each end among which one that need not wait for a prefix is looked for."""

_WORTH_WAITING = 16
"""Prompt tokens whose computation is saved by starting a request some steps later."""


class Step:
    """One call of `StepPolicy.select`.

    What takes a look at all requests in flight is found out when it is first asked for: when the
    engine can run no more requests, or the pace allows no prefill, most steps ask for none of it.
    """

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
        outlook, running = self.pool.outlook, self.in_flight
        if outlook is None or not running.requests:
            return np.zeros((0, LEVELS.size))
        return outlook.remaining(running.indices, running.generated)

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
        outlook, indices = self.pool.outlook, self.in_flight.indices
        doubt = np.zeros(0) if outlook is None else outlook.doubt(indices)
        return SafetyMargin(self.remaining, doubt)

    @cached_property
    def computing(self) -> set[int]:
        """Nodes whose prompts enter the prefix cache when a first token comes out."""
        running = self.in_flight
        nodes: set[int] = set()
        for at in np.flatnonzero(running.generated == 0).tolist():
            nodes.update(self.pool.shared_above(running.requests[at], 0))
        return nodes

    @cached_property
    def rest(self) -> RemainingWork:
        """Predicted work left before the step: the pool's and that of the requests in flight."""
        running, cost = self.in_flight, self.pool.cost
        context = running.prompt_tokens + running.generated
        remaining = self.remaining.mean(axis=1)
        reads = float((remaining * (context + remaining / 2)).sum())
        compute = float(cost.decode_compute_seconds(remaining.sum(), reads))
        compute += float(cost.prefill_seconds(self.state.chunk_tokens))
        waiting = self.pool.rest
        return RemainingWork(
            waiting.compute + compute, waiting.memory + float(cost.kv_read_seconds(reads))
        )

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
        outlook, running = self.pool.outlook, self.in_flight
        if outlook is not None and running.requests:
            first = outlook.remaining(running.indices[:1], running.generated[:1])[0]
            if first[0] != first[-1]:
                return False  # mostly so, and found out without a look at all of them
        known = bool((self.remaining[:, 0] == self.remaining[:, -1]).all())
        return known and self.admission.peak + self.state.running > self.limit

    def fill(self) -> None:
        """Choose requests until a budget or the memory is used up."""
        state = self.state
        load = StepLoad(state.running, state.kv_tokens)
        budget = self.policy.save(self.policy.pace.budget(load, RestOnDemand(lambda: self.rest)))
        if state.chunk is not None:
            side_budget = _of(budget, state.chunk.side)
            # A prompt that has begun goes on, however little the pace allows: it holds memory.
            self.spent = min(state.chunk_tokens, max(side_budget, self.policy.min_tokens))
            if self.spent < state.chunk_tokens:
                if self._must_not_be_late():
                    self.spent = min(state.chunk_tokens, self.policy.max_tokens)
                self._done()
                return
        if self.policy.steps % _SHARE_STEPS == 0:
            share = max(self._compute_side_share(), _LEAST_SHARE) + self._scarce_compute_share()
            self.policy.share = min(share, _MOST_SHARE)
        self.policy.steps += 1
        if self._room(budget.memory_side):
            memory_limit = self.policy.fill * self.limit - self.policy.share * self.pool.kv_slots
            self._take_first(budget.memory_side, memory_limit)
            self._take(Side.MEMORY, budget.memory_side, memory_limit)
            self._take(Side.COMPUTE, budget.compute_side, self.limit)
        self._keep_going()
        self._done()

    def _compute_side_share(self) -> float:
        plan, scanner = self.pool.plan, self.pool.scanner
        if plan is None or not len(scanner):
            return 0.0
        window = min(_END_WINDOW, len(scanner) // 8 + 1)
        ends = [
            float(density(plan.compute_seconds[end].sum(), plan.memory_seconds[end].sum()))
            for end in (scanner.upcoming(side, window) for side in Side)
        ]
        root = float(density(self.rest.compute, self.rest.memory))
        return memory_partition(root, ends[0], ends[1])

    def _scarce_compute_share(self) -> float:
        cost, slots = self.pool.cost, self.pool.kv_slots
        ratio = compute_scarcity(cost, slots, self.state.running, self.rest)
        return _SCARCE_SHARE * min(max((ratio - _SCARCE_FROM) / _SCARCE_WIDTH, 0.0), 1.0)

    def _take_first(self, budget: int, memory_limit: float) -> None:
        """Take what comes before the plan: returned requests, then the sample of lengths."""
        while self._room(budget):
            request = self.pool.peek_returned()
            if request is None:
                break
            limit = memory_limit if request.side is Side.MEMORY else self.limit
            if not self._admit(request, request.side, limit, budget):
                return
        while self._room(budget):
            request = self.pool.next_sample()
            if request is None:
                return
            if self._shares_unfinished_prefix(request):
                return
            if not self._admit(request, Side.MEMORY, memory_limit, budget):
                return

    def _take(self, side: Side, budget: int, limit: float) -> None:
        """Take from one end while there is room.

        A request whose prefix another one is just computing waits until it can share it; the next
        ones in line, which start another prefix, need not wait for that. Where the next request
        does not fit, a shorter one behind it may.
        """
        refused, waiting = 0, 0
        while self._room(budget):
            started = len(self.selection.requests)
            ahead = self.pool.scanner.upcoming(side, _LOOK_AHEAD).tolist()
            for index in ahead[waiting + refused :]:
                if not self._room(budget):
                    return
                request = self.pool.request(index)
                if self._shares_unfinished_prefix(request):
                    waiting += 1
                elif not self._admit(request, side, limit, budget):
                    refused += 1
                    if refused > self.policy.backfill:
                        return
            if len(self.selection.requests) == started:
                return

    def _room(self, budget: int) -> bool:
        return self.spent < budget and len(self.selection.requests) < self.state.free_requests

    def _cached(self, request: PoolRequest) -> int:
        return self.state.cached_tokens(request)

    def _shares_unfinished_prefix(self, request: PoolRequest) -> bool:
        if not self.computing or self.computing.isdisjoint(self.pool.shared_above(request, 0)):
            return False
        above = self.pool.shared_above(request, self._cached(request) + _WORTH_WAITING - 1)
        return not self.computing.isdisjoint(above)

    def _admit(self, request: PoolRequest, side: Side, limit: float, budget: int) -> bool:
        remaining = until_end = self._predicted_remaining(request)
        least = self._needs(request, 1)
        short = not self._delay(request.prompt.size + request.generated)
        if short:  # a look-up is saved where it does not fit however much of it is cached
            limit = min(limit, self.limit - self.margin.up_to(float(remaining[-1])))
            if not self.admission.fits(least, remaining, limit):
                return False
        uncached = self._uncached(request, self._cached(request))
        if not short:
            until_end = remaining + self._delay(uncached)
            limit = min(limit, self.limit - self.margin.up_to(float(until_end[-1])))
        needs = max(uncached, least)
        tried = short and needs == least
        if not (tried or self.admission.fits(needs, until_end, limit)):
            return False
        if not self._fits_beside(request, needs, until_end, limit):
            return False
        if self.policy.whole_prompts and self.spent and self.spent + uncached > budget:
            return False
        self._start(request, side, uncached, remaining, budget)
        return True

    def _fits_beside(
        self, request: PoolRequest, needs: int, until_end: Floats, limit: float
    ) -> bool:
        """Whether ``request``, which fits, does so if prefixes that one other held alone stay."""
        alone = self.pool.prefixes.alone(request)
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

    def _needs(self, request: PoolRequest, uncached: int) -> int:
        """KV slots that ``request`` takes besides what others in flight hold already."""
        return self.pool.prefixes.needs(request, uncached)

    def _member(self, request: PoolRequest) -> int:
        """Number of a request in flight in `admission`."""
        before = self.in_flight.requests
        if request in before:
            return before.index(request)
        return len(before) + self.selection.requests.index(request)

    def _uncached(self, request: PoolRequest, cached: int) -> int:
        """Tokens to compute before ``request`` decodes (again, after a retraction)."""
        # The last one is always computed: its logits give the next output token.
        return max(request.prompt.size + request.generated - cached, 1)

    def _start(
        self, request: PoolRequest, side: Side, uncached: int, remaining: Floats, budget: int
    ) -> None:
        # First: it is read off what was in flight before.
        needs = self._needs(request, uncached)
        for other, tokens in self.pool.prefixes.alone(request):
            self.admission.share(self._member(other), tokens)
        self.admission.add(needs, remaining + self._delay(uncached))
        assert self.pool.outlook is not None
        self.margin.add(remaining, self.pool.outlook.doubt_of(request.index))
        self.pool.start(request)
        request.side = side
        request.held_tokens = needs - request.generated
        request.expected_tokens = request.generated + float(remaining.sum()) / remaining.size
        if not request.generated:
            self.computing.update(self.pool.shared_above(request, 0))
        self.selection.requests.append(request)
        self.spent += uncached if self.policy.whole_prompts else min(uncached, budget - self.spent)

    def _predicted_remaining(self, request: PoolRequest) -> Floats:
        """(q,) equally likely remaining lengths."""
        assert self.pool.outlook is not None
        if not request.generated:
            return self.pool.outlook.fresh(request.index)
        left = self.pool.outlook.remaining([request.index], [float(request.generated)])
        return np.asarray(left[0], dtype=np.float64)

    def _keep_going(self) -> None:
        """With an idle engine something must start, whatever the predictions say."""
        if self.state.running or self.spent or self.state.free_requests < 1:
            return
        request = self.pool.peek_returned() or self.pool.peek(Side.MEMORY)
        if request is not None:
            side = request.side if request.index not in self.pool.scanner else Side.MEMORY
            uncached = self._uncached(request, self._cached(request))
            remaining = self._predicted_remaining(request)
            self._start(request, side, uncached, remaining, self.policy.max_tokens)

    def _done(self) -> None:
        self.selection.prefill_tokens = self.spent
        self.policy.spend(self.spent)


def _of(budget: PrefillBudget, side: Side) -> int:
    return budget.compute_side if side is Side.COMPUTE else budget.memory_side
