"""The step policies by name: what ``--blendserve-pace`` and the simulator choose from."""

from __future__ import annotations

from sglang.srt.blendserve.cost.step_seconds import StepSeconds, stock_steps
from sglang.srt.blendserve.policy.full_step import FullSteps
from sglang.srt.blendserve.policy.marginal_pace import MarginalPace
from sglang.srt.blendserve.policy.pace import PACES, FixedPace, Pace
from sglang.srt.blendserve.policy.paper import PaperPolicy
from sglang.srt.blendserve.policy.select import StepPolicy
from sglang.srt.blendserve.policy.tuning import DEFAULTS, Tuning
from sglang.srt.blendserve.pool.request_pool import RequestPool

AnyStepPolicy = StepPolicy | PaperPolicy


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
    steps = steps or stock_steps(pool.cost)
    alone = min_tokens >= max_tokens
    full_steps = FullSteps(pool.cost, steps, pool.kv_slots, max_tokens, alone)
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
