"""The paper's own dual scanner (section 5.3, algorithm 3), for comparison.

The KV memory is split between the two ends so that the blend in flight is as dense as what is left,

    M_L = M (rho_root - rho_R) / (rho_L - rho_R)        M_R = M - M_L

and each end admits a fixed number of prompt tokens per step: what keeps its part of memory full:

    N_L = M_L / (p_L + d_L / 2)      C_L = N_L p_L / d_L      (R likewise)

with p, d and rho of the requests at either end of the scan. A request that outlives its estimate
counts for the memory-bound end from then on.
"""

from __future__ import annotations

from sglang.srt.blendserve.cost.cost_model import density
from sglang.srt.blendserve.plan.scanner import Side, memory_partition
from sglang.srt.blendserve.policy.pace import FixedPace
from sglang.srt.blendserve.policy.step_policy import EngineState, Step, StepPolicy
from sglang.srt.blendserve.pool.request_pool import PoolRequest, RequestPool

_END = 64
"""Requests at each end that stand for it."""


class PaperPolicy(StepPolicy):
    """Partition of the memory and fixed budgets instead of pace and predicted peak."""

    def __init__(
        self,
        pool: RequestPool,
        *,
        max_tokens: int,
        min_tokens: int = 1,
        whole_prompts: bool = False,
    ) -> None:
        """Arguments as of `StepPolicy`."""
        super().__init__(
            pool,
            FixedPace(max_tokens),
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            whole_prompts=whole_prompts,
        )
        self.saved = {Side.COMPUTE: 0.0, Side.MEMORY: 0.0}

    def step(self, state: EngineState) -> Step:
        """One choice that starts from ``state``."""
        return _PaperStep(self, state)


class _PaperStep(Step):
    policy: PaperPolicy

    def fill(self) -> None:
        """Continue the begun prompt, then admit from both ends within memory and budget."""
        self._account()
        memory, budget = self._partition()
        for side in Side:
            most = float(max(budget[side], self.policy.min_tokens))
            self.policy.saved[side] = min(self.policy.saved[side] + budget[side], most)
        if self.state.chunk is not None:
            self.spent = min(self.state.chunk_tokens, self.policy.max_tokens)
        self._take_first(self.policy.max_tokens, self.limit)
        before = self.spent  # what came first, the sample above all, is on neither end's budget
        for side in (Side.MEMORY, Side.COMPUTE):
            allowed = int(self.policy.saved[side])
            if allowed >= self.policy.min_tokens:
                self._take_side(side, memory[side], min(before + allowed, self.policy.max_tokens))
            self.policy.saved[side] -= max(self.spent - before, 0)
            before = self.spent
        self._keep_going()
        self.selection.prefill_tokens = self.spent

    def _account(self) -> None:
        """KV tokens that the requests in flight of either end hold."""
        self.held = dict.fromkeys(Side, 0.0)
        for request in self.pool.running:
            late = request.generated > request.expected_tokens
            side = Side.MEMORY if late else request.side
            self.held[side] += request.held_tokens + request.generated

    def _partition(self) -> tuple[dict[Side, float], dict[Side, float]]:
        """Memory (KV tokens) and prompt tokens per step for either end."""
        plan, slots = self.pool.plan, self.pool.kv_slots
        if plan is None or not len(self.pool.scanner):
            whole = dict.fromkeys(Side, float(slots))
            return whole, dict.fromkeys(Side, float(self.policy.max_tokens))
        ends = {side: self.pool.scanner.upcoming(side, _END) for side in Side}
        rho = {
            side: float(density(plan.compute_seconds[e].sum(), plan.memory_seconds[e].sum()))
            for side, e in ends.items()
        }
        root = float(density(self.rest.compute, self.rest.memory))
        share = memory_partition(root, rho[Side.COMPUTE], rho[Side.MEMORY])
        memory = {Side.COMPUTE: share * slots, Side.MEMORY: (1 - share) * slots}
        budget = {}
        for side, end in ends.items():
            prompt = float(plan.prompt_tokens[end].mean())
            output = max(float(plan.output_tokens[end].mean()), 1.0)
            running = max(memory[side] / (prompt + output / 2), 1.0)
            budget[side] = min(running * prompt / output, float(self.policy.max_tokens))
        return memory, budget

    def _take_side(self, side: Side, memory: float, budget: int) -> None:
        waiting = 0
        while self._room(budget):
            ahead = self.pool.scanner.upcoming(side, _END).tolist()[waiting:]
            if not ahead:
                return
            for index in ahead:
                request = self.pool.request(index)
                cached = self._cached(request)
                if self._shares_unfinished_prefix(request):
                    waiting += 1
                elif not (self._room(budget) and self._fits_part(request, side, memory, cached)):
                    return
                else:
                    self._begin(request, side, cached, budget)

    def _fits_part(self, request: PoolRequest, side: Side, memory: float, cached: int) -> bool:
        uncached = self._uncached(request, cached)
        average = float(self._predicted_remaining(request).mean()) / 2
        here = self.admission.kv_tokens + uncached
        nothing = self.held[side] == 0
        return here <= self.limit and (nothing or self.held[side] + uncached + average <= memory)

    def _begin(self, request: PoolRequest, side: Side, cached: int, budget: int) -> None:
        uncached = self._uncached(request, cached)
        remaining = self._predicted_remaining(request)
        beside = self.pool.prefixes.beside(request)
        self.held[side] += uncached
        self._start(request, side, uncached, beside, remaining, budget)
