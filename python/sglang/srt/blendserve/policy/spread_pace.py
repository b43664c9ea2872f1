"""The pace for engines that run compute and memory traffic one after the other.

Nothing hides behind anything there, so a step cannot be balanced. But the weights are loaded once
a step, and a matrix product of enough tokens hides that: what can be lost to pace is the loading of
weights in steps with few tokens. Such steps come where decodes are left without prefill beside
them. So the prefill that is left is spread evenly over the KV reads that are left,

    prefill compute of the step = remaining compute * (KV read of the step / remaining KV reads)
                                  - decode compute of the step

and the two end together; and no step is given fewer tokens than hide the loading of its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.policy.pace import PrefillBudget, Rest, StepLoad


@dataclass(frozen=True, slots=True)
class SpreadPace:
    """The remaining compute spread over the remaining KV reads."""

    cost: CostModel
    max_tokens: int
    """Largest prefill of one step, tokens."""

    def budget(self, load: StepLoad, rest: Rest) -> PrefillBudget:
        """The step's part of the prefill, and at least what hides its weights."""
        left = rest.memory
        if load.running == 0 or not left > 0:
            return PrefillBudget(self.max_tokens, self.max_tokens)
        read = float(self.cost.kv_read_seconds(load.kv_tokens))
        decode = float(self.cost.decode_compute_seconds(load.running, load.kv_tokens))
        part = rest.compute / left * read
        # Where both are predicted to have no end: as much of one as of the other.
        even = (read if math.isnan(part) else part) - decode
        # Attention over the KV cache, the rest of the decodes' compute, loads no weights.
        products = float(self.cost.decode_compute_seconds(load.running))
        hiding = float(self.cost.weights_seconds(self.max_tokens)) - products
        tokens = max(even, hiding, 0.0) / self.cost.prompt_token_seconds()
        allowed = self.max_tokens if math.isinf(tokens) else min(math.ceil(tokens), self.max_tokens)
        return PrefillBudget(allowed, allowed)
