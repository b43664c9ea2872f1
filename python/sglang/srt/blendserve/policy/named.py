"""The step policies by name: what ``--blendserve-pace`` and the simulator choose from."""

from __future__ import annotations

from sglang.srt.blendserve.policy.pace import BalancePace, FixedPace, Pace, RatioPace
from sglang.srt.blendserve.policy.paper import PaperPolicy
from sglang.srt.blendserve.policy.spread_pace import SpreadPace
from sglang.srt.blendserve.policy.step_policy import StepPolicy
from sglang.srt.blendserve.pool.request_pool import RequestPool

PACES = ("balance", "spread", "ratio", "fixed", "paper")
"""``balance``: as much compute as a step's memory traffic hides. ``spread``: the remaining prefill
spread over the remaining decodes. ``ratio``: the ratio of all remaining work in every step.
``fixed``: a full chunk in every step. ``paper``: the paper's partition of the memory and its
budgets, without predicted peaks."""


def automatic_pace(*, overlaps: bool) -> str:
    """The pace for an engine whose steps run compute and memory traffic at once, or do not."""
    return "balance" if overlaps else "spread"


def make_step_policy(
    pool: RequestPool,
    pace: str,
    *,
    max_tokens: int,
    min_tokens: int = 1,
    whole_prompts: bool = False,
    fill: float = 1.0,
    backfill: int = 8,
) -> StepPolicy:
    """The step policy over ``pool`` named ``pace``; other arguments as of `StepPolicy`.

    Raises ValueError for an unknown name.
    """
    if pace == "paper":
        return PaperPolicy(
            pool, max_tokens=max_tokens, min_tokens=min_tokens, whole_prompts=whole_prompts
        )
    paces: dict[str, Pace] = {
        "balance": BalancePace(pool.cost, max_tokens),
        "spread": SpreadPace(pool.cost, max_tokens),
        "ratio": RatioPace(pool.cost, pool.kv_slots, max_tokens),
        "fixed": FixedPace(max_tokens),
    }
    if pace not in paces:
        raise ValueError(f"unknown pace {pace!r}; known: {', '.join(PACES)}")
    return StepPolicy(
        pool,
        paces[pace],
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        whole_prompts=whole_prompts,
        fill=fill,
        backfill=backfill,
    )
