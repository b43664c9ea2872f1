"""The step policy: which requests join the next step, and how many prompt tokens it computes.

Order, pace and memory come together here (DESIGN.md, "Scheduling"). In each step

1. requests that the engine gave back are served first,
2. the memory-bound end fills the KV cache, up to what the compute-bound side needs to flow
   (the paper's partition, with the densities of the two ends as they are now),
3. the compute-bound end flows through at the pace,

and every request must fit by the predicted peak of all that is in flight.
"""

from __future__ import annotations

from sglang.srt.blendserve.cost.prompt_cost import PromptCost
from sglang.srt.blendserve.policy.admission import PeakAdmission
from sglang.srt.blendserve.policy.margin import BIAS, MANY_CAPS
from sglang.srt.blendserve.policy.pace import Pace, PrefillBudget
from sglang.srt.blendserve.policy.select import Step
from sglang.srt.blendserve.policy.step_state import EngineState, Selection
from sglang.srt.blendserve.pool.request_pool import RequestPool, Tokens

__all__ = ["EngineState", "Selection", "Step", "StepPolicy", "shared_tokens"]


class StepPolicy:
    """BlendServe's choice for each step, over one pool."""

    def __init__(
        self,
        pool: RequestPool,
        pace: Pace,
        *,
        max_tokens: int,
        min_tokens: int = 1,
        whole_prompts: bool = False,
        fill: float = 1.0,
        backfill: int = 8,
    ) -> None:
        """
        ``max_tokens``: largest prefill of one step. ``min_tokens``: smallest worth a step; a
        smaller budget is saved up. ``whole_prompts``: the engine cannot split a prompt.
        ``fill``: share of the memory that the memory-bound end's predicted peak may reach, less
        what is kept for the compute-bound end. ``backfill``: how many requests at one end may be
        passed over in a step because they do not fit, for shorter ones behind them; those of
        known lengths do not count (see `Step`).
        """
        self.pool = pool
        self.pace = pace
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.whole_prompts = whole_prompts
        self.fill = fill
        self.backfill = backfill
        self.budget = PrefillBudget(0, 0)
        self._credit = 0.0
        self.steps = 0
        self.share = 0.0
        """Of the memory, kept for the compute-bound end."""
        self.bias = BIAS
        """Of predicted lengths, allowed for in the safety margin."""
        self.caps_held = MANY_CAPS
        """See `safety_margin.caps_held`."""
        self.prompt_cost = PromptCost(pool.cost.model)
        self.admission: type[PeakAdmission] = PeakAdmission

    def select(self, state: EngineState) -> Selection:
        """Choose for the step that starts from ``state``; the chosen requests leave the pool."""
        step = self.step(state)
        step.fill()
        return step.selection

    def step(self, state: EngineState) -> Step:
        """One choice that starts from ``state``."""
        return Step(self, state)

    def spend(self, tokens: int) -> None:
        """Count ``tokens`` of prefill against what was saved up."""
        self._credit = max(0.0, self._credit - tokens)

    def save(self, budget: PrefillBudget) -> PrefillBudget:
        """Add this step's budget to what earlier steps left over; return what may be spent."""
        self.budget = budget
        # Only what is too small for a step is kept for a later one.
        most = float(max(budget.compute_side, self.min_tokens))
        self._credit = min(self._credit + budget.compute_side, most)
        compute_side = int(self._credit)
        memory_side = max(compute_side, budget.memory_side)
        return PrefillBudget(
            compute_side if compute_side >= self.min_tokens else 0,
            memory_side if memory_side >= self.min_tokens else 0,
        )


def shared_tokens(one: Tokens, other: Tokens) -> int:
    """Length of the common prefix of two prompts, tokens."""
    both = min(one.size, other.size)
    differ = one[:both] != other[:both]
    first = int(differ.argmax()) if both else 0
    return first if both and differ[first] else both
