"""Plans for the jobs of one engine, and what is handed over of them: the work of the planner's
process, which `planner_process` runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.dispatch.messages import News, pack, unpack
from sglang.srt.blendserve.dispatch.store_plan import StorePlan
from sglang.srt.blendserve.pool.background import Background
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.requests.request_store import RequestStore

FIRST_PLAN = 2048
"""Rows that are worth a first plan; fewer where the store has no more."""


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """What plans are made with.

    Attributes:
        cost: what work costs on the engine.
        kv_slots: tokens that the engine's KV cache holds.
        most_tokens: of a prompt and its answer, where a line sets no limit.
        rules: when and how plans are made.
    """

    cost: CostModel
    kv_slots: int
    most_tokens: int
    rules: PlanningRules = field(default_factory=PlanningRules)


class Planner:
    """One plan a job."""

    def __init__(self, settings: PlannerSettings) -> None:
        self._settings = settings
        self._jobs: dict[str, StorePlan] = {}

    def answer(self, message: bytes) -> bytes:
        """Return the reply to a message of `planner_client.PlannerClient`.

        Raises:
            OSError: a job's store cannot be read.
        """
        header, body = unpack(message)
        job = header["job"]
        if header["op"] == "open":
            self._open(job, Path(header["folder"]), body)
        elif header["op"] == "close":
            self._jobs.pop(job, None)
        elif job not in self._jobs:
            return pack({"unknown": True})
        else:
            return pack(self._take(job, header))
        return pack({})

    def work(self, idle_seconds: float) -> bool:
        """Take up what stores have more, and plan; say whether there is more to do soon.

        Args:
            idle_seconds: how long it may wait for a plan that is being made.
        """
        busy = False
        for plan in self._jobs.values():
            more = plan.look()
            planning = plan.plan_if_due(0.0 if more else idle_seconds)
            busy = busy or more or planning or not plan.whole
        return busy

    def _open(self, job: str, folder: Path, skip: bytes) -> None:
        settings = self._settings
        pool = RequestPool(
            settings.cost, settings.kv_slots, rules=settings.rules, background=Background()
        )
        self._jobs[job] = StorePlan(
            RequestStore(folder),
            pool,
            np.frombuffer(skip, dtype=np.bool_),
            most_tokens=settings.most_tokens,
            first_plan=FIRST_PLAN,
        )

    def _take(self, job: str, header: dict[str, Any]) -> dict[str, Any]:
        plan, news = self._jobs[job], News(*header["news"])
        plan.whole = plan.whole or news.whole
        plan.started(news.started)
        for line, output_tokens in news.ended:
            plan.ended(line, output_tokens)
        places = plan.take(header["most"])
        return {
            "places": [[*place] for place in places],
            "ended": not places and plan.all_handed_over,
            "planned": plan.pool.current.requests,
            "prepared": plan.rows,
            "left": [*plan.pool.current.rest],
        }
