"""Plans for the jobs of one or several engines, and what is handed over of them: the work of the
planner's process, which `planner_process` runs."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.dispatch.dispatcher import Dispatcher
from sglang.srt.blendserve.dispatch.engine_rooms import Rooms
from sglang.srt.blendserve.dispatch.messages import News, Place, Taken, pack, unpack
from sglang.srt.blendserve.dispatch.store_plan import Rows, StorePlan
from sglang.srt.blendserve.plan.densities import plan_figures
from sglang.srt.blendserve.pool.background import Background
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.requests.request_store import RequestStore

logger = logging.getLogger(__name__)

FIRST_PLAN = 2048
"""Rows that are worth a first plan; fewer where the store has no more."""

_LATER_LOOK = 20_000
"""Rows that are taken up at a time after that, about 0.1 s of work."""
_AT_ONCE = 16
"""Requests that one of several engines is handed before it is looked again which has least."""

_FIRST_PLAN_SECONDS = 0.02
"""How long a message may wait for the first plan."""

RULES = PlanningRules(growth=1.0)
"""What is handed over comes from both ends of what is planned, so a plan over more waits until
there is twice as much."""


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """What plans are made with.

    Attributes:
        cost: what work costs on the engine.
        kv_slots: tokens that the KV cache of one engine holds.
        most_tokens: of a prompt and its answer, where a line sets no limit.
        rules: when and how plans are made.
        engines: how many are fed.
    """

    cost: CostModel
    kv_slots: int
    most_tokens: int
    rules: PlanningRules = RULES
    engines: int = 1


class Planner:
    """One plan over all jobs, in which each has its share of what is handed over."""

    def __init__(self, settings: PlannerSettings) -> None:
        self._settings = settings
        self._losses = [0] * settings.engines
        self._jobs: dict[str, StorePlan] = {}
        self._dispatcher = self._new_dispatcher()

    @property
    def pool(self) -> RequestPool:
        """The requests of all jobs."""
        return self._dispatcher.pool

    def answer(self, message: bytes) -> bytes:
        """Return the reply to a message of `planner_client.PlannerClient`."""
        header, body = unpack(message)
        job = header.get("job", "")
        try:
            if header["op"] == "view":
                return pack(self._view())
            if header["op"] == "open":
                skip = np.frombuffer(body, dtype=np.bool_)
                self.open(job, RequestStore(Path(header["folder"])), skip)
            elif header["op"] == "close":
                self.close(job)
            elif job in self._jobs:
                rooms = Rooms(*header["rooms"]) if "rooms" in header else None
                taken = self.take(job, header["most"], News(*header["news"]), rooms)
                return pack(taken.as_header())
            else:
                return pack({"unknown": True})
        except Exception:  # of any kind: the other jobs are planned on
            logger.exception("%s cannot be planned", job)
            self.close(job)
            return pack({"unknown": True})
        return pack({})

    def open(self, job: str, store: Rows, skip: NDArray[np.bool_]) -> None:
        """Plan the requests of a job from now on.

        Args:
            store: has them, and may still grow.
            skip: by line number, whether it is not to be handed over.
        """
        self.close(job)
        self._jobs[job] = StorePlan(
            job, store, self._dispatcher, skip, most_tokens=self._settings.most_tokens
        )

    def take(self, job: str, most: int, news: News, rooms: Rooms | None = None) -> Taken:
        """Return the next lines of a job for one engine, so many at ``most``; none while no plan is
        there, or no engine may have more now.

        Args:
            rooms: of the engines; None: of the one engine, which has room.

        Raises:
            KeyError: it is not open: it never was, or could not be planned.
        """
        plan = self._jobs[job]
        plan.whole = plan.whole or news.whole
        plan.started(news.started)
        for line in news.aside:
            plan.put_aside(line)
        for line, output_tokens in news.ended:
            plan.ended(line, output_tokens)
        if rooms is None:
            rooms = Rooms([most], [0])
        self._note_losses(rooms.losses)
        engine = self._dispatcher.next_engine(rooms.free, rooms.idle) if most else None
        places: list[Place] = []
        if engine is not None:
            if len(rooms.free) > 1:  # the one that has least may be another one soon
                most = min(most, rooms.free[engine], _AT_ONCE)
            places = plan.take(most, engine)
        ended = not places and plan.all_handed_over
        return Taken(places, ended, plan.planned, plan.rows, plan.work, engine or 0)

    def _note_losses(self, losses: Sequence[int]) -> None:
        """Engines that have lost what they had since then hold nothing."""
        for engine, times in enumerate(losses):
            if times > self._losses[engine]:
                self._losses[engine] = times
                self._dispatcher.windows.lost(engine)

    def work(self, idle_seconds: float) -> bool:
        """Take up what stores have more, and plan; say whether there is more to do soon.

        Args:
            idle_seconds: how long it may wait for a plan that is being made.
        """
        nothing_planned = not self.pool.current.requests
        jobs = [*self._jobs.items()]
        if nothing_planned and self.pool.planning:  # whoever takes up more takes time from it
            jobs, idle_seconds = [], max(idle_seconds, _FIRST_PLAN_SECONDS)
        more = False
        for job, plan in jobs:
            try:
                more = plan.look(FIRST_PLAN if nothing_planned else _LATER_LOOK) or more
            except Exception:  # of any kind: the other jobs are planned on
                logger.exception("%s cannot be planned", job)
                self.close(job)
        try:
            # A plan over what is there would be made again, as soon as all is taken up.
            if self.pool.planning or not (more and self._has_enough):
                self._plan_if_due(0.0 if more else idle_seconds)
        except Exception:  # of any kind: those that ask for them open them again
            logger.exception("What waits cannot be planned")
            for plan in self._jobs.values():
                plan.close_store()
            self._jobs, self._dispatcher = {}, self._new_dispatcher()
        growing = any(not plan.whole for plan in self._jobs.values())
        return more or self.pool.planning or growing

    @property
    def _has_enough(self) -> bool:
        """Whether there is something planned to hand over of all jobs for a while."""
        return all(
            plan.to_hand_over >= FIRST_PLAN or not plan.unplanned for plan in self._jobs.values()
        )

    def _plan_if_due(self, idle_seconds: float) -> None:
        """Plan again if it is worth it, and at once for a job that would have nothing to give:
        beside a large one, little of a small one is ever a share that is worth it."""
        pool = self.pool
        waits = any(
            plan.unplanned if plan.settled else plan.unplanned >= FIRST_PLAN and plan.starved
            for plan in self._jobs.values()
        )
        if pool.planning or waits or len(pool) >= FIRST_PLAN or pool.current.requests:
            pool.plan_if_due(quiet=waits, idle_seconds=idle_seconds)

    def close(self, job: str) -> None:
        """Forget a job. Of one that is not open it does nothing."""
        plan = self._jobs.pop(job, None)
        if plan is not None:
            plan.close()
            if not self._jobs:  # a pool's parts know each other, and little else makes garbage here
                gc.collect()

    def _new_dispatcher(self) -> Dispatcher:
        settings = self._settings
        return Dispatcher(
            RequestPool(
                settings.cost,
                settings.kv_slots,
                rules=settings.rules,
                background=Background(),
                has_cache=False,
            ),
            settings.engines,
        )

    def _view(self) -> dict[str, Any]:
        pool = self.pool
        return {
            "waiting": len(pool),
            "running": len(pool.table.running),
            **plan_figures(pool.current.plan),
        }
