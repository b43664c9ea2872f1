"""The paper's own dual scanner (section 5.3, algorithm 3 as printed), for comparison.

The KV memory is split between the two sides so that the blend in flight is as dense as the rest,

    M_L = M (rho_root - rho_R) / (rho_L - rho_R)        M_R = M - M_L

and each side admits a fixed number of prompt tokens per step: what keeps its part of memory full:

    N_L = M_L / (p_L + d_L / 2)      C_L = N_L p_L / d_L      (R likewise)

with p, d and rho of the requests at either side of the scan. A request that outlives its estimate
counts for the memory-bound side from then on. Returned requests and the sample of lengths come
first, by predicted peak as in `select`: the paper says nothing of how they are admitted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sglang.srt.blendserve.cost.cost_model import density
from sglang.srt.blendserve.cost.prompt_cost import PromptCost
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.margin import Caution
from sglang.srt.blendserve.policy.memory import Candidate
from sglang.srt.blendserve.policy.pace import FixedPace, Pace, PrefillBudget
from sglang.srt.blendserve.policy.select import take_returned, take_sample
from sglang.srt.blendserve.policy.split import memory_partition
from sglang.srt.blendserve.policy.state import EngineState, Selection
from sglang.srt.blendserve.policy.step import Step
from sglang.srt.blendserve.policy.tuning import DEFAULTS, Tuning
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool

BySide = dict[Side, float]

_ONE_DEVIATION = 0.1587
"""Probability that a normal distribution lies more than one standard deviation above its mean."""


class PaperPolicy:
    """Partition of the memory and fixed budgets instead of pace and predicted peak."""

    def __init__(
        self,
        pool: RequestPool,
        *,
        max_tokens: int,
        min_tokens: int = 1,
        whole_prompts: bool = False,
        tuning: Tuning = DEFAULTS,
    ) -> None:
        """Take the arguments of `StepPolicy`."""
        self.pool = pool
        self.pace: Pace = FixedPace(max_tokens)
        """Not asked: the budgets are the paper's."""
        self.max_tokens, self.min_tokens = max_tokens, min_tokens
        self.whole_prompts = whole_prompts
        self.tuning = tuning
        self.budget = PrefillBudget(0, 0)
        """What the last step was allowed, prompt tokens."""
        self.saved: BySide = dict.fromkeys(Side, 0.0)
        """Prompt tokens that each side has left over; below 0 if a whole prompt exceeded them."""
        # One deviation: what is given back and sampled is admitted by the predicted peak.
        self._caution = Caution(replace(tuning, least_risk=_ONE_DEVIATION))
        self._prompt_cost = PromptCost(pool.cost.model, tuning.prompt_cost_kept)

    def select(self, state: EngineState) -> Selection:
        """Continue the begun prompt, then admit from both sides within memory and budget."""
        step = Step(
            self.pool,
            state,
            self._caution,
            self._prompt_cost,
            max_tokens=self.max_tokens,
            whole_prompts=self.whole_prompts,
        )
        held = self._held_by_side(self.pool.table.running.values())
        memory, budget = self._partition(step)
        self._save(budget)
        if state.chunk is not None:
            step.go_on(min(state.chunk_tokens, self.max_tokens))
        limits = dict.fromkeys(Side, step.memory.limit)
        if take_returned(step, self.pool, limits, self.max_tokens):
            take_sample(step, self.pool, step.memory.limit, self.max_tokens)
        before = step.spent  # what came first, the sample above all, is on neither side's budget
        for side in (Side.MEMORY, Side.COMPUTE):
            allowed = int(self.saved[side])
            if allowed >= self.min_tokens:
                most = min(before + allowed, self.max_tokens)
                self._take(step, side, held, memory[side], most)
            self.saved[side] -= max(step.spent - before, 0)
            before = step.spent
        step.never_idle()
        return step.selection()

    def _held_by_side(self, running: Iterable[PoolRequest]) -> BySide:
        """KV tokens that the requests in flight of either side hold."""
        held = dict.fromkeys(Side, 0.0)
        for request in running:
            late = request.generated > request.expected_tokens
            side = Side.MEMORY if late else request.side
            held[side] += request.held_tokens + request.generated
        return held

    def _partition(self, step: Step) -> tuple[BySide, BySide]:
        """Memory (KV tokens) and prompt tokens per step for either side."""
        plan, scanner, slots = self.pool.current.plan, self.pool.current.scanner, self.pool.kv_slots
        if plan is None or not len(scanner):
            return dict.fromkeys(Side, float(slots)), dict.fromkeys(Side, float(self.max_tokens))
        nearest = {side: scanner.upcoming(side, self.tuning.paper_window) for side in Side}
        rho = {
            side: float(density(plan.compute_seconds[n].sum(), plan.memory_seconds[n].sum()))
            for side, n in nearest.items()
        }
        root = float(density(step.rest.compute, step.rest.memory))
        share = memory_partition(root, rho[Side.COMPUTE], rho[Side.MEMORY])
        memory = {Side.COMPUTE: share * slots, Side.MEMORY: (1 - share) * slots}
        budget = {}
        for side, requests in nearest.items():
            prompt = float(plan.prompt_tokens[requests].mean())
            output = max(float(plan.output_tokens[requests].mean()), 1.0)
            running = max(memory[side] / (prompt + output / 2), 1.0)
            budget[side] = min(running * prompt / output, float(self.max_tokens))
        return memory, budget

    def _save(self, budget: BySide) -> None:
        """Add a step's budgets to what is left over of earlier ones."""
        compute_side = int(budget[Side.COMPUTE])
        self.budget = PrefillBudget(compute_side, compute_side + int(budget[Side.MEMORY]))
        for side in Side:
            most = float(max(budget[side], self.min_tokens))
            self.saved[side] = min(self.saved[side] + budget[side], most)

    def _take(self, step: Step, side: Side, held: BySide, memory: float, budget: int) -> None:
        """Take from one side while its part of the ``memory`` (KV tokens) and budget has room."""
        waiting = 0
        while step.room(budget):
            upcoming = self.pool.current.scanner.upcoming(side, self.tuning.paper_window)
            ahead = upcoming.tolist()[waiting:]
            if not ahead:
                return
            for index in ahead:
                request = self.pool.table.all[index]
                if step.waits_for_prefix(request):
                    waiting += 1
                    continue
                one = step.memory.candidate(request)
                if not (step.room(budget) and _fits(step, one, held[side], memory)):
                    return
                if step.exceeds(one, self.max_tokens):  # its side's budget it may exceed
                    return
                held[side] += one.uncached
                step.start(one, side, budget)


def _fits(step: Step, one: Candidate, held: float, memory: float) -> bool:
    """Whether ``one`` fits the memory as it is now, and what its side holds its side's part."""
    average = float(one.remaining.mean()) / 2
    here = step.memory.admission.kv_tokens + one.uncached
    return here <= step.memory.limit and (held == 0 or held + one.uncached + average <= memory)
