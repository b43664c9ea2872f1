"""Our policy in the simulation that runs SGLang's scheduler: plans by the simulated clock."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.runtime.record.step_timer import StepTimer
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.simulated_policy import simulated_policy


def plan_in_virtual_time(scheduler: Any, machine: Machine, options: BlendOptions) -> None:
    """Give the scheduler a pool that plans for the simulated model and never by the real clock.

    Plans are made at once, not beside the steps, whose real time means nothing here; for the same
    reason nobody learns from how long a step took.
    """
    policy = simulated_policy(scheduler.max_total_num_tokens, machine, options)
    scheduler.use_pool(policy.pool, policy)
    if options.lru_eviction:
        scheduler.tree_cache.follow(None)
    scheduler.step_timer = StepTimer(machine.cost, [], one_behind=False)
