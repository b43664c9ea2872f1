"""One scheduling step while it is being filled: who joins it, and how many prompt tokens it has."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from sglang.srt.blendserve.cost.prompt_cost import PromptCost
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.margin import Caution
from sglang.srt.blendserve.policy.memory import Candidate, StepMemory
from sglang.srt.blendserve.policy.state import EngineState, Selection
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool


class Step:
    """The requests that join one step, beside those in flight."""

    def __init__(
        self,
        pool: RequestPool,
        state: EngineState,
        caution: Caution,
        prompt_cost: PromptCost,
        *,
        max_tokens: int,
        whole_prompts: bool,
    ) -> None:
        """``caution``: of the safety margin. ``prompt_cost``: learns what the prompts of the step
        cost. ``max_tokens``: largest prefill of a step. ``whole_prompts``: the engine cannot split
        a prompt."""
        self.state = state
        self.memory = StepMemory(pool, state, caution, max_tokens)
        self.max_tokens = max_tokens
        self.requests: list[PoolRequest] = []
        """Who joins, in the order of prefill."""
        self.spent = 0
        """Prompt tokens that the step computes so far."""
        self._pool, self._prompt_cost = pool, prompt_cost
        self._missing: dict[int, bool] = {}
        self._whole_prompts, self._worth_waiting = whole_prompts, caution.tuning.worth_waiting

    @cached_property
    def rest(self) -> RemainingWork:
        """Predicted work left before the step: the pool's and that of the requests in flight."""
        cost = self._pool.cost
        decodes, reads = self._decodes
        compute = float(cost.decode_compute_seconds(decodes, reads))
        compute += float(cost.prefill_seconds(self.state.chunk_tokens))
        waiting = self._pool.current.rest
        return RemainingWork(
            waiting.compute + compute, waiting.memory + float(cost.kv_read_seconds(reads))
        )

    @property
    def context(self) -> float:
        """KV tokens that a decode of the requests in flight reads in the mean until they end; 0
        without any."""
        decodes, reads = self._decodes
        return reads / decodes if decodes else 0.0

    @cached_property
    def _decodes(self) -> tuple[float, float]:
        """Decodes that the requests in flight still have, and KV tokens that these read."""
        running = self.memory.in_flight
        context = running.prompt_tokens + running.generated
        remaining = self.memory.remaining.mean(axis=1)
        return float(remaining.sum()), float((remaining * (context + remaining / 2)).sum())

    def room(self, budget: int) -> bool:
        """Whether the step takes more: of prompt tokens within ``budget``, and of requests."""
        return self.spent < budget and len(self.requests) < self.state.free_requests

    def go_on(self, tokens: int) -> None:
        """Compute ``tokens`` of the prompt that has begun in an earlier step."""
        chunk = self.state.chunk
        assert chunk is not None
        self.spent = tokens
        self._note_prompt(chunk, self.state.chunk_tokens, tokens)

    def waits_for_prefix(self, request: PoolRequest) -> bool:
        """Whether another request is just computing a prefix that ``request`` begins with, too."""
        if not self._computing:
            return False
        shared = self._worth_sharing(request)
        return any(node in self._computing and self._is_missing(node, request) for node in shared)

    def _is_missing(self, node: int, request: PoolRequest) -> bool:
        """Whether so much of the prefix of ``node``, which ``request`` begins with, is not cached
        that it is worth waiting for.

        All below the node have the same answer: one of them looks into the cache, which costs more
        than all else here.
        """
        missing = self._missing.get(node)
        if missing is None:
            cached = self.state.cached_tokens(request)
            beyond = self._pool.prefixes.beyond(request, cached + self._worth_waiting - 1)
            missing = self._missing[node] = node in beyond
        return missing

    def admit(self, request: PoolRequest, side: Side, limit: float, budget: int) -> bool:
        """Start ``request`` of ``side`` if it fits; say whether it does.

        ``limit``: KV tokens that the predicted peak may reach beside it. ``budget``: prompt tokens
        of the step; what a prompt has more is left to later steps.
        """
        one = self.memory.candidate(request)
        if not self.memory.fits(one, limit, self._room_for_one(budget)):
            return False
        if self.exceeds(one, budget):
            return False
        self.start(one, side, budget)
        return True

    def exceeds(self, one: Candidate, budget: int) -> bool:
        """Whether the whole prompt of ``one`` is more than is left of ``budget`` prompt tokens.

        False where the engine splits prompts, and for the first prompt of a step: no step would
        have room for it.
        """
        return self._whole_prompts and self.spent > 0 and self.spent + one.uncached > budget

    def start(self, one: Candidate, side: Side, budget: int) -> None:
        """Let ``one`` join the step without asking whether it fits."""
        request, uncached = one.request, one.uncached
        self.memory.join(one, self._room_for_one(budget))
        request.held_tokens = one.footprint.exclusive
        self._pool.start(request)
        request.side = side
        request.expected_tokens = request.generated + one.expected
        if not request.generated:
            self._computing.update(self._worth_sharing(request))
        self.requests.append(request)
        tokens = uncached if self._whole_prompts else min(uncached, budget - self.spent)
        self._note_prompt(request, uncached, tokens)
        self.spent += tokens

    def _room_for_one(self, budget: int) -> int:
        """Prompt tokens of the next prompt that the step computes."""
        return self.max_tokens if self._whole_prompts else budget - self.spent

    def never_idle(self) -> None:
        """Start something if the engine would have nothing to do, whatever the predictions say."""
        if self.state.running or self.spent or self.state.free_requests < 1:
            return
        current, returned = self._pool.current, self._pool.table.returned
        if returned:
            request: PoolRequest | None = returned[0]
        else:
            request = self._pool.patience.overdue() or current.peek(Side.MEMORY)
        if request is not None:
            side = request.side if request.index not in current.scanner else Side.MEMORY
            self.start(self.memory.candidate(request), side, self.max_tokens)

    def selection(self) -> Selection:
        """End the step; return who joins it and how many prompt tokens it computes."""
        self._prompt_cost.end_step()
        return Selection(self.requests, self.spent)

    @cached_property
    def _computing(self) -> set[int]:
        """Nodes whose prompts enter the prefix cache when a first token comes out; only those that
        are worth waiting for."""
        running = self.memory.in_flight
        nodes: set[int] = set()
        for at in np.flatnonzero(running.generated == 0).tolist():
            nodes.update(self._worth_sharing(running.requests[at]))
        return nodes

    def _worth_sharing(self, request: PoolRequest) -> list[int]:
        """Nodes above ``request`` with so many tokens that somebody might wait for them."""
        return self._pool.prefixes.beyond(request, max(self._worth_waiting - 1, 0))

    def _note_prompt(self, request: PoolRequest, left: int, tokens: int) -> None:
        """``tokens`` of the ``left`` last ones of a prompt are computed in this step."""
        context = request.prompt.size + request.generated - left
        self._prompt_cost.note(tokens, context, ends=tokens >= left)
