"""Our policy in the simulation that runs SGLang's scheduler: plans by the simulated clock."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.policy.named import make_step_policy
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.record.step_timer import StepTimer
from sglang.srt.blendserve.simulator.believed_steps import believed_steps
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions


def plan_in_virtual_time(scheduler: Any, machine: Machine, options: BlendOptions) -> None:
    """Give the scheduler a pool that plans for the simulated model and never by the real clock.

    Plans are made at once, not beside the steps, whose real time means nothing here; for the same
    reason nobody learns from how long a step took.
    """
    pool = RequestPool(machine.cost, scheduler.max_total_num_tokens, rules=options.rules)
    policy = make_step_policy(
        pool,
        options.pace,
        max_tokens=options.chunk,
        tuning=options.tuning,
        steps=believed_steps(machine.steps, machine.scale),
    )
    scheduler.use_pool(pool, policy)
    if options.lru_eviction:
        scheduler.tree_cache.follow(None)
    scheduler.step_timer = StepTimer(pool.cost, [], one_behind=False)
