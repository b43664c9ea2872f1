"""The step policy: which requests join the next step, and how many prompt tokens it computes.

The paper's dual scanner (section 5.3) as it runs. One scan order, taken from both sides: the
memory-bound side fills the KV cache, the compute-bound side flows through at the pace, and every
request must fit by the predicted peak of all that is in flight. `StepPolicy.select` reads from top
to bottom. Where it departs from algorithm 3, which is in `paper`:

- budgets follow the step as it is (`pace`), not the mean of requests at the two sides;
- memory is admitted by predicted peak and margin (`admission`, `margin`), not by averages, up to
  the time by which a request has paid for being computed again (`full_step`);
- the partition of the memory (`split`) only limits the memory-bound side.
"""

from __future__ import annotations

from sglang.srt.blendserve.cost.prompt_cost import PromptCost
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.full_step import FullSteps
from sglang.srt.blendserve.policy.margin import Caution
from sglang.srt.blendserve.policy.pace import (
    Pace,
    PrefillBudget,
    RestOnDemand,
    SavedPrefill,
    StepLoad,
    compute_scarcity,
)
from sglang.srt.blendserve.policy.split import MemorySplit, move_underestimated
from sglang.srt.blendserve.policy.state import EngineState, Selection
from sglang.srt.blendserve.policy.step import Step
from sglang.srt.blendserve.policy.tuning import DEFAULTS, Tuning
from sglang.srt.blendserve.pool.request_pool import RequestPool


class StepPolicy:
    """BlendServe's choice for each step, over one pool."""

    def __init__(
        self,
        pool: RequestPool,
        pace: Pace,
        full_steps: FullSteps,
        *,
        max_tokens: int,
        min_tokens: int = 1,
        whole_prompts: bool = False,
        tuning: Tuning = DEFAULTS,
    ) -> None:
        """
        ``full_steps``: what the engine's memory is worth. ``max_tokens``: largest prefill of one
        step. ``min_tokens``: smallest worth a step; a
        smaller budget is saved up. ``whole_prompts``: the engine cannot split a prompt.
        """
        self.pool = pool
        self.pace = pace
        self.full_steps = full_steps
        self.max_tokens, self.min_tokens = max_tokens, min_tokens
        self.whole_prompts = whole_prompts
        self.tuning = tuning
        self.saved = SavedPrefill(min_tokens)
        self.split = MemorySplit(tuning)
        self.caution = Caution(tuning)
        self.prompt_cost = PromptCost(pool.cost.model, tuning.prompt_cost_kept)

    @property
    def budget(self) -> PrefillBudget:
        """What the pace allowed the last step, prompt tokens."""
        return self.saved.latest

    def select(self, state: EngineState) -> Selection:
        """Choose for the step that starts from ``state``; the chosen requests leave the pool."""
        step = Step(
            self.pool,
            state,
            self.caution,
            self.prompt_cost,
            max_tokens=self.max_tokens,
            whole_prompts=self.whole_prompts,
        )
        budget = self._pace(step)
        if self._begun_prompt_ends(step, budget):
            if self.split.due():
                self._divide_memory(step)
            if step.room(budget.memory_side):
                limit = step.memory.limit
                limits = {
                    Side.MEMORY: limit - self.split.share * self.pool.kv_slots,
                    Side.COMPUTE: limit,
                }
                self._admit(step, limits, budget)
            step.never_idle()
        self.saved.spend(step.spent)
        return step.selection()

    def _admit(self, step: Step, limits: dict[Side, float], budget: PrefillBudget) -> None:
        """Take what the engine gave back, what has waited for too long, the sample, the plan."""
        pool = self.pool
        again = take_returned(step, pool, limits, budget.memory_side)
        if not again and pool.patience.is_overdue(pool.table.returned[0]):
            return
        if not take_overdue(step, pool, limits[Side.COMPUTE], budget.memory_side):
            return
        if again:
            take_sample(step, pool, limits[Side.MEMORY], budget.memory_side)
        self._take(step, Side.MEMORY, limits[Side.MEMORY], budget.memory_side)
        self._take(step, Side.COMPUTE, limits[Side.COMPUTE], budget.compute_side)

    def _pace(self, step: Step) -> PrefillBudget:
        """The prompt tokens that the step may compute."""
        budget = self.pace.budget(self._load(step), RestOnDemand(lambda: step.rest))
        return self.saved.add(budget.at_most(step.state.most_prefill))

    def _load(self, step: Step) -> StepLoad:
        state, begun = step.state, step.state.chunk is not None
        factor = self.prompt_cost.factor
        return StepLoad(state.running, state.kv_tokens, factor, begun, step.context)

    def _begun_prompt_ends(self, step: Step, budget: PrefillBudget) -> bool:
        """Go on with a prompt that has begun; say whether its end, if there is one, is in the step.

        It goes on however little the pace allows: it holds memory. Another one begins only behind
        its end.
        """
        state = step.state
        if state.chunk is None:
            return True
        tokens = min(state.chunk_tokens, max(budget.of(state.chunk.side), self.min_tokens))
        if tokens < state.chunk_tokens and step.memory.must_not_be_late():
            tokens = min(state.chunk_tokens, self.max_tokens)
        step.go_on(tokens)
        return tokens == state.chunk_tokens

    def _divide_memory(self, step: Step) -> None:
        """Find anew what is kept for the compute-bound side, and what a slot is worth."""
        cost, slots, running = self.pool.cost, self.pool.kv_slots, step.state.running
        scarcity = compute_scarcity(cost, slots, running, step.rest)
        self.split.divide(self.pool.current, step.rest, scarcity)
        self.caution.slot_price = 0.0
        if step.state.kv_tokens > 0 and step.rest.memory > 0:
            full = self.full_steps.of(self._load(step), step.rest)
            self.caution.slot_price = self.full_steps.slot_price(full)
        move_underestimated(self.pool.table.running.values(), self.tuning.outlived)

    def _take(self, step: Step, side: Side, limit: float, budget: int) -> None:
        """Take from one side of the scan while there is room.

        A request whose prefix another one is just computing waits until it can share it; the next
        ones in line, which start another prefix, need not wait for that. Where the next request
        does not fit, a shorter one behind it may, among more of them where lengths are known: long
        ones that started together then also end together, and in between only shorter ones fill the
        memory.
        """
        refused = waiting = 0
        while step.room(budget):
            started = len(step.requests)
            ahead = self.pool.current.scanner.upcoming(side, self.tuning.look_ahead).tolist()
            for index in ahead[waiting + refused :]:
                if not step.room(budget):
                    return
                request = self.pool.table.all[index]
                if step.waits_for_prefix(request):
                    waiting += 1
                elif not step.admit(request, side, limit, budget):
                    refused += 1
                    known, tuning = request.known_length, self.tuning
                    if refused > (tuning.backfill_known if known else tuning.backfill):
                        return
            if len(step.requests) == started:
                return


def take_overdue(step: Step, pool: RequestPool, limit: float, budget: int) -> bool:
    """Take the requests that have been overtaken too often, in the order of their deadlines.

    Nobody waits for ever: `pool.patience` has the bound.

    ``limit``: KV tokens that the predicted peak may reach. Returns False if one of them does not
    fit: then nothing goes before it, and memory comes free for it.
    """
    while step.room(budget):
        request = pool.patience.overdue()
        if request is None:
            return True
        if not step.admit(request, Side.MEMORY, limit, budget):
            return False
    return True


def take_returned(step: Step, pool: RequestPool, limits: dict[Side, float], budget: int) -> bool:
    """Take the requests that the engine gave back, in their order.

    ``limits``: KV tokens that the predicted peak may reach beside requests of a side. Returns False
    if one of them does not fit: then no sample may go before it.
    """
    while step.room(budget) and pool.table.returned:
        request = pool.table.returned[0]
        if not step.admit(request, request.side, limits[request.side], budget):
            return False
    return True


def take_sample(step: Step, pool: RequestPool, limit: float, budget: int) -> None:
    """Take the sample of requests that lengths are learned from (paper section 5.1)."""
    while step.room(budget):
        request = pool.current.next_sample()
        if request is None or step.waits_for_prefix(request):
            return
        if not step.admit(request, Side.MEMORY, limit, budget):
            return
