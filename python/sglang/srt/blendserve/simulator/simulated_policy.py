"""Our step policy in a simulation, and what it believes that a step of the engine takes: the truth
as far as a pace asks for it, unless the machine has another belief."""

from __future__ import annotations

from sglang.srt.blendserve.cost.step_seconds import CONTEXT, StepSeconds
from sglang.srt.blendserve.policy.named import AnyStepPolicy, make_step_policy
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.step_cost import StepModel, StepWork


def simulated_policy(kv_slots: int, machine: Machine, options: BlendOptions) -> AnyStepPolicy:
    """Return the policy over a pool of its own. ``kv_slots``: KV tokens of the engine's cache."""
    return make_step_policy(
        RequestPool(machine.cost, kv_slots, rules=options.rules),
        "marginal" if options.pace == "auto" else options.pace,
        max_tokens=options.chunk,
        tuning=options.tuning,
        steps=believed_steps(machine.belief or machine.steps, machine.scale),
    )


def believed_steps(model: StepModel, scale: float) -> StepSeconds:
    """Return what steps of ``model`` take, over prompt tokens, decodes and KV tokens.

    ``scale``: of the replica, whose prompts are so many times as short.
    """

    def seconds(prompt_tokens: int, decodes: int, kv_tokens: float) -> float:
        scores = prompt_tokens * CONTEXT / scale
        return model.step(StepWork(prompt_tokens, scores, 0, decodes, int(kv_tokens))).seconds

    return seconds
