"""Data parallel replicas: a workload divided over k of them, each with an engine of its own.

``round robin`` is what SGLang's data parallel controller does with the requests of a job that
arrive one by one, whatever the policy. ``sub-trees`` is the paper's section 5.5: one plan over all
requests, cut into shares of equal compute and memory work (`partition`). Lengths are not
known there either: 1 % of the requests are sampled first, as the policy does by itself.
``one plan`` cuts nothing beforehand: the dispatcher feeds windows of all engines (`run --engines`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from partition import partition

from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.many_engines import Fleet, longest_alone
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.workload import Workload

Ints = NDArray[np.int64]

WINDOW = 8192
"""Requests in an engine at most, as `run` has it."""

ROUND_ROBIN, SUB_TREES, ONE_PLAN = "round robin", "sub-trees", "one plan"
DIVISIONS = (ROUND_ROBIN, SUB_TREES)


def divided(
    workload: Workload,
    machine: Machine,
    policy: str,
    replicas: int,
    division: str,
    flags: dict[str, Any],
    fleet: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Play ``policy`` on each of ``replicas`` machines with its part of the requests.

    ``flags``: what `FastRun.run` is to try for a peer. ``fleet``: options of `Fleet`. The run takes
    as long as the slowest part. Raises ValueError for an unknown division.
    """
    if division == ONE_PLAN:
        run = FastRun(workload, machine, fleet=Fleet(replicas, **(fleet or {})))
        played = run.run(policy, options=BlendOptions(window=WINDOW)).as_dict()
        engines = played.pop("engines")
        alone = longest_alone(run.replica, machine)
        return played | {
            "seconds_of_each": [engine["ended_at"] for engine in engines],
            "busy_of_each": [engine["busy_seconds"] for engine in engines],
            "requests_of_each": [engine["requests"] for engine in engines],
            "longest_alone_seconds": machine.real_seconds(alone),
        }
    parts = shares(workload, machine, replicas, division)
    results = [FastRun(workload.take(part), machine).run(policy, **flags) for part in parts]
    prompts = np.array([int(workload.prompt_tokens[part].sum()) for part in parts])
    seconds = [result.seconds for result in results]
    longest = max(seconds)
    return {
        "policy": policy,
        "tokens_per_second": workload.tokens / longest,
        "seconds": longest,
        "seconds_of_each": seconds,
        "requests_of_each": [int(part.size) for part in parts],
        "prefix_sharing": float(prompts @ [r.prefix_sharing for r in results] / prompts.sum()),
        "retractions": sum(result.retractions for result in results),
        "scheduler_seconds": sum(result.scheduler_seconds for result in results),
    }


def shares(workload: Workload, machine: Machine, replicas: int, division: str) -> list[Ints]:
    """Requests of each replica in their order of arrival."""
    if division == ROUND_ROBIN:
        return [np.arange(first, workload.size, replicas) for first in range(replicas)]
    if division != SUB_TREES:
        raise ValueError(f"division {division!r}: choose from {', '.join(DIVISIONS)}")
    replica = workload.replica(machine.scale)
    always = PlanningRules(learn_least=0, learn_growth=0.0, drift=-1.0)
    pool = RequestPool(machine.cost, machine.kv_slots, rules=always)
    for index, prompt in enumerate(replica.prompts()):
        pool.add(PoolRequest(str(index), prompt, int(replica.max_tokens[index])))
    pool.plan_if_due(quiet=True)
    sampled: list[int] = []
    while (request := pool.current.next_sample()) is not None:
        pool.start(request)
        sampled.append(request.index)
    for index in sampled:
        pool.finish(pool.table.all[index], int(replica.output_tokens[index]))
    pool.plan_if_due(quiet=True)  # orders what is left anew, for what the sample has taught
    plan = pool.current.plan
    assert plan is not None
    return [
        np.sort(np.append(part.requests, sampled[rank::replicas])).astype(np.int64)
        for rank, part in enumerate(partition(plan, replicas))
    ]
