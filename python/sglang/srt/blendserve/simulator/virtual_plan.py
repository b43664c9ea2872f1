"""Our policy in the simulation that runs SGLang's scheduler: plans by the simulated clock."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.ablation import ReserveAll, make_pool
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions


def plan_in_virtual_time(
    scheduler: Any, machine: Machine, options: BlendOptions, told: dict[str, int] | None = None
) -> None:
    """Give the scheduler a pool that plans for the simulated model and never by the real clock.

    Plans are made at once, not beside the steps, whose real time means nothing here; for the same
    reason no step time is measured. ``told``: output lengths by request id that the policy is told
    and takes for exact.
    """
    pool = make_pool(options, machine.cost, scheduler.max_total_num_tokens)
    if told is not None:
        tell(pool, told)
    scheduler.use_pool(pool)
    if options.lru_eviction:
        scheduler.tree_cache.follow(None)
    policy = scheduler.step_policy
    policy.fill, policy.backfill = options.fill, options.backfill
    if options.reserve_all:
        policy.admission = ReserveAll
    scheduler.step_feedback = None


def tell(pool: RequestPool, lengths: dict[str, int]) -> None:
    """Let ``pool`` take the output lengths of requests from ``lengths``."""
    add = pool.add

    def adding(request: PoolRequest) -> None:
        request.max_tokens, request.known_length = lengths[request.rid], True
        add(request)

    pool.add = adding  # type: ignore[method-assign]
