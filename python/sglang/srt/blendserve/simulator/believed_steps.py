"""What the policy believes that a step of the simulated engine takes: the truth, as far as a pace
asks for it."""

from __future__ import annotations

from sglang.srt.blendserve.cost.step_seconds import CONTEXT, StepSeconds
from sglang.srt.blendserve.simulator.step_cost import StepModel, StepWork


def believed_steps(model: StepModel, scale: float) -> StepSeconds:
    """Return what steps of ``model`` take, over prompt tokens, decodes and KV tokens.

    ``scale``: of the replica, whose prompts are so many times as short.
    """

    def seconds(prompt_tokens: int, decodes: int, kv_tokens: float) -> float:
        scores = prompt_tokens * CONTEXT / scale
        return model.step(StepWork(prompt_tokens, scores, 0, decodes, int(kv_tokens))).seconds

    return seconds
