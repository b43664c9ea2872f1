"""The step policies by name: what ``--blendserve-pace`` and the simulator choose from."""

from __future__ import annotations

from dataclasses import replace

from sglang.srt.blendserve.cost.step_seconds import StepSeconds, stock_steps
from sglang.srt.blendserve.policy.full_step import FullSteps
from sglang.srt.blendserve.policy.marginal_pace import MarginalPace
from sglang.srt.blendserve.policy.pace import PACES, FixedPace, Pace
from sglang.srt.blendserve.policy.paper import PaperPolicy
from sglang.srt.blendserve.policy.select import StepPolicy
from sglang.srt.blendserve.policy.tuning import DEFAULTS, Tuning
from sglang.srt.blendserve.pool.request_pool import RequestPool

AnyStepPolicy = StepPolicy | PaperPolicy


def stock_full_steps(pool: RequestPool, max_tokens: int) -> FullSteps:
    """Full steps of stock SGLang on the pool's device, of up to ``max_tokens`` prompt tokens."""
    return FullSteps(pool.cost, stock_steps(pool.cost), pool.kv_slots, max_tokens)


def make_step_policy(
    pool: RequestPool,
    pace: str,
    *,
    max_tokens: int,
    min_tokens: int = 1,
    whole_prompts: bool = False,
    tuning: Tuning = DEFAULTS,
    steps: StepSeconds | None = None,
) -> AnyStepPolicy:
    """The step policy over ``pool`` named ``pace``, one of `pace.PACES`.

    ``max_tokens``: largest prefill of one step. ``min_tokens``: smallest worth a step. Both in
    prompt tokens. ``whole_prompts``: the engine cannot split a prompt. ``steps``: what a step of
    the engine takes (default: as stock SGLang on the pool's device). Raises ValueError for an
    unknown name.
    """
    if pace not in PACES:
        raise ValueError(f"unknown pace {pace!r}; known: {', '.join(PACES)}")
    if pace == "paper":
        return PaperPolicy(
            pool,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            whole_prompts=whole_prompts,
            tuning=tuning,
        )
    full_steps = replace(stock_full_steps(pool, max_tokens), alone=min_tokens >= max_tokens)
    if steps is not None:
        full_steps = replace(full_steps, steps=steps)
    chosen: Pace = MarginalPace(full_steps) if pace == "marginal" else FixedPace(max_tokens)
    return StepPolicy(
        pool,
        chosen,
        full_steps,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        whole_prompts=whole_prompts,
        tuning=tuning,
    )
