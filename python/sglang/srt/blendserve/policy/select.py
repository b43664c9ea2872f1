"""One choice of the step policy: returned requests, the memory-bound end, the compute-bound end."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import density
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.plan.scanner import Side, memory_partition
from sglang.srt.blendserve.policy.margin import caps_held, likely_bias
from sglang.srt.blendserve.policy.memory import StepMemory
from sglang.srt.blendserve.policy.pace import (
    PrefillBudget,
    RestOnDemand,
    StepLoad,
    compute_scarcity,
    rise,
)
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.shared_prefixes import Beside

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

_OUTLIVED = 2.0
"""Times its expected length after which a request was underestimated."""

_LOOK_AHEAD = 64
"""Requests from each end among which one that need not wait for a prefix is looked for."""

_WORTH_WAITING = 16
"""Prompt tokens whose computation is saved by starting a request some steps later."""


class Step(StepMemory):
    """One call of `StepPolicy.select`.

    What takes a look at all requests in flight is found out when it is first asked for: when the
    engine can run no more requests, or the pace allows no prefill, most steps ask for none of it.
    """

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

    def fill(self) -> None:
        """Choose requests until a budget or the memory is used up."""
        state = self.state
        load = StepLoad(state.running, state.kv_tokens, self.policy.prompt_cost.factor)
        budget = self.policy.save(self.policy.pace.budget(load, RestOnDemand(lambda: self.rest)))
        if state.chunk is not None:
            side_budget = _of(budget, state.chunk.side)
            # A prompt that has begun goes on, however little the pace allows: it holds memory.
            self.spent = min(state.chunk_tokens, max(side_budget, self.policy.min_tokens))
            if self.spent < state.chunk_tokens and self._must_not_be_late():
                self.spent = min(state.chunk_tokens, self.policy.max_tokens)
            self._note_prompt(state.chunk, state.chunk_tokens, self.spent)
            if self.spent < state.chunk_tokens:
                self._done()
                return
        if self.policy.steps % _SHARE_STEPS == 0:
            self._divide_memory()
            self._move_underestimated()
        self.policy.steps += 1
        if self._room(budget.memory_side):
            memory_limit = self.policy.fill * self.limit - self.policy.share * self.pool.kv_slots
            self._take_first(budget.memory_side, memory_limit)
            self._take(Side.MEMORY, budget.memory_side, memory_limit)
            self._take(Side.COMPUTE, budget.compute_side, self.limit)
        self._keep_going()
        self._done()

    def _divide_memory(self) -> None:
        """Set what of the memory is kept for the compute-bound end, and for what may go wrong."""
        cost, slots, running = self.pool.cost, self.pool.kv_slots, self.state.running
        scarcity = compute_scarcity(cost, slots, running, self.rest)
        share = max(self._compute_side_share(), _LEAST_SHARE)
        share += _SCARCE_SHARE * rise(scarcity, _SCARCE_FROM, _SCARCE_WIDTH)
        self.policy.share = min(share, _MOST_SHARE)
        prefill = self.policy.budget.compute_side
        self.policy.bias = likely_bias(scarcity, prefill / max(prefill + running, 1))
        self.policy.caps_held = caps_held(scarcity)

    def _move_underestimated(self) -> None:
        """Let requests that run far longer than expected belong to the memory-bound end.

        It is that end's share of the memory that they take up, and in which they must fit when
        they come back after a retraction (paper section 5.3).
        """
        for request in self.pool.running:
            if request.generated > _OUTLIVED * request.expected_tokens:
                request.side = Side.MEMORY

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
        does not fit, a shorter one behind it may: where lengths are known, one of all that are
        looked at. Long ones that started together then also end together, and in between only
        shorter ones fill the memory.
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
                    if not request.known_length and refused > self.policy.backfill:
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
        beside = self.pool.prefixes.beside(request)
        least = beside.needs(1, request.generated)
        short = not self._delay(request.prompt.size + request.generated)
        if short:  # a look-up is saved where it does not fit however much of it is cached
            limit = self._safe(limit, request, float(remaining[-1]))
            if not self.admission.fits(least, remaining, limit):
                return False
        uncached = self._uncached(request, self._cached(request))
        if not short:
            until_end = remaining + self._delay(uncached)
            limit = self._safe(limit, request, float(until_end[-1]))
        needs = max(uncached, least)
        tried = short and needs == least
        if not (tried or self.admission.fits(needs, until_end, limit)):
            return False
        if not self._fits_beside(beside.alone, needs, until_end, limit):
            return False
        if self.policy.whole_prompts and self.spent and self.spent + uncached > budget:
            return False
        self._start(request, side, uncached, beside, remaining, budget)
        return True

    def _uncached(self, request: PoolRequest, cached: int) -> int:
        """Tokens to compute before ``request`` decodes (again, after a retraction)."""
        # The last one is always computed: its logits give the next output token.
        return max(request.prompt.size + request.generated - cached, 1)

    def _start(
        self,
        request: PoolRequest,
        side: Side,
        uncached: int,
        beside: Beside,
        remaining: Floats,
        budget: int,
    ) -> None:
        for other, tokens in beside.alone:
            self.admission.share(self._member(other), tokens)
        needs = beside.needs(uncached, request.generated)
        self.admission.add(needs, remaining + self._delay(uncached))
        self.margin.add(remaining, *self._doubt(request))
        request.held_tokens = beside.held
        self.pool.start(request)
        request.side = side
        request.expected_tokens = request.generated + float(remaining.sum()) / remaining.size
        if not request.generated:
            self.computing.update(self.pool.shared_above(request, 0))
        self.selection.requests.append(request)
        tokens = uncached if self.policy.whole_prompts else min(uncached, budget - self.spent)
        self._note_prompt(request, uncached, tokens)
        self.spent += tokens

    def _note_prompt(self, request: PoolRequest, left: int, tokens: int) -> None:
        """``tokens`` of the ``left`` last ones of a prompt are computed in this step."""
        context = request.prompt.size + request.generated - left
        self.policy.prompt_cost.note(tokens, context, ends=tokens >= left)

    def _predicted_remaining(self, request: PoolRequest) -> Floats:
        """(q,) equally likely remaining lengths."""
        assert self.pool.forecast is not None
        if not request.generated:
            return self.pool.forecast.fresh(request.index)
        left = self.pool.forecast.remaining([request.index], [float(request.generated)])
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
            beside = self.pool.prefixes.beside(request)
            self._start(request, side, uncached, beside, remaining, self.policy.max_tokens)

    def _done(self) -> None:
        self.selection.prefill_tokens = self.spent
        self.policy.spend(self.spent)
        self.policy.prompt_cost.end_step()


def _of(budget: PrefillBudget, side: Side) -> int:
    return budget.compute_side if side is Side.COMPUTE else budget.memory_side
