"""Weeks of arrivals: a batch's wait is bounded by its window, a small one's by its own size.

Time is simulated; the slots, the rate meter, the pool and its plans are the real ones. The engine
is slow, so that weeks are some thousand requests.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from pools import COST

from sglang.srt.blendserve.answering.rate_meter import RateMeter
from sglang.srt.blendserve.answering.slots import TURNAROUND, Demand, SlotPool
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.store.tally import Tally

pytestmark = pytest.mark.anyio

HOUR, DAY = 3600.0, 86_400.0


@dataclass
class Batch:
    """A batch of ``size`` requests that is handed in at ``at`` seconds, with its window."""

    name: str
    size: int
    at: float
    window: float
    handed_out: int = 0
    in_flight: int = 0
    answered: int = 0
    done_at: float | None = None


@dataclass
class World:
    """An engine that answers a request every ``seconds``, and the batches in front of it."""

    batches: list[Batch]
    seconds: float
    most: int
    rules: PlanningRules = field(default_factory=PlanningRules)
    now: float = 0.0

    def __post_init__(self) -> None:
        meter = RateMeter(lambda: self.now / self.pace)
        self.slots = SlotPool(self.most, None, meter)
        self.pool = RequestPool(COST, 10_000, rules=self.rules)
        self.rng = np.random.default_rng(0)
        self.number = 0

    @property
    def pace(self) -> float:
        """Simulated seconds in one of the meter's, whose minute would see no request."""
        return self.seconds * 10

    async def feed(self, batch: Batch) -> None:
        def demand() -> Demand:
            # The meter counts in other seconds, and windows go by it.
            left = (batch.at + batch.window - self.now) / self.pace
            return Demand(batch.size - batch.answered, batch.in_flight, left)

        while batch.handed_out < batch.size:
            await self.slots.take(1, demand)
            batch.handed_out += 1
            batch.in_flight += 1
            prompt = self.rng.integers(0, 4, int(self.rng.integers(1, 40))).astype(np.int32)
            length = int(self.rng.integers(1, 300))
            self.pool.add(
                PoolRequest(f"r{self.number}", prompt, length, True, batch.name, payload=batch)
            )
            self.number += 1

    async def run(self) -> None:
        """Play until all batches are done."""
        coming = [(batch.at, index, batch) for index, batch in enumerate(self.batches)]
        heapq.heapify(coming)
        feeding: list[asyncio.Task[None]] = []
        starts = 0
        while coming or len(self.pool) or not all(task.done() for task in feeding):
            if not len(self.pool) and coming and all(task.done() for task in feeding):
                self.now = max(self.now, coming[0][0])
            while coming and coming[0][0] <= self.now:
                feeding.append(asyncio.ensure_future(self.feed(heapq.heappop(coming)[2])))
            for _ in range(3):
                await asyncio.sleep(0)
            self.pool.plan_if_due(quiet=False)
            side = Side.MEMORY if starts % 2 else Side.COMPUTE
            one = self.pool.patience.overdue() or self.pool.current.peek(side)
            if one is None:
                self.pool.plan_if_due(quiet=True)
                one = self.pool.current.peek(side)
            if one is None:
                continue
            batch: Batch = one.payload
            self.pool.start(one)
            self.pool.finish(one, one.max_tokens)
            starts += 1
            self.now += self.seconds
            batch.in_flight -= 1
            batch.answered += 1
            if batch.answered == batch.size:
                batch.done_at = self.now
            self.slots.meter.add(Tally(completed=1))
            self.slots.give_back(1)


def weeks(rng: np.random.Generator, seconds: float, load: float) -> Iterator[Batch]:
    """Two weeks of batches of all sizes and windows, ``load`` of what the engine can do."""
    now = 0.0
    number = 0
    while now < 14 * DAY:
        size = int(rng.choice([1, 5, 20, 100, 400], p=[0.3, 0.3, 0.2, 0.15, 0.05]))
        shortest = HOUR + 8 * size * seconds
        window = max(float(rng.choice([1, 4, 24, 168])) * HOUR, shortest)
        yield Batch(f"b{number}", size, now, window)
        number += 1
        now += float(rng.exponential(size * seconds / load))


@pytest.mark.parametrize("seed", [0, 1])
async def test_weeks_of_arrivals_and_every_window_is_kept(seed: int) -> None:
    seconds = 60.0
    most = int(TURNAROUND / seconds)  # as `slot_count` has it, but for the floor
    batches = list(weeks(np.random.default_rng(seed), seconds, load=0.8))
    assert sum(batch.size for batch in batches) > 10_000
    world = World(batches, seconds, most, rules=PlanningRules(least_explained=4))
    await world.run()
    late = [b for b in batches if b.done_at is None or b.done_at > b.at + b.window]
    assert late == []


async def test_a_hundred_lines_behind_a_large_batch() -> None:
    """Small batches behind one that would take weeks, and more of the same kind beside it."""
    seconds, most = 2.0, 512
    large = Batch("large", 30_000, 0.0, 7 * DAY)
    small = [Batch(f"s{n}", 100, 2000.0 + 5000 * n, DAY) for n in range(10)]
    world = World([large, *small], seconds, most)
    await world.run()
    alone = 100 * seconds
    took = [b.done_at - b.at for b in small if b.done_at is not None]
    assert len(took) == 10
    # Alone it would take 200 s; ahead of it in the engine are 512 requests, 1,024 s.
    assert np.percentile(took, 95) <= 10 * alone
    assert large.done_at is not None
    assert large.done_at == pytest.approx((30_000 + 1000) * seconds, rel=0.05)


async def test_a_flood_of_urgent_batches_leaves_the_others_their_share() -> None:
    """Batches that are all at risk do not keep one out that has a week."""
    flood = [Batch(f"f{n}", 2000, 0.0, HOUR) for n in range(4)]
    calm = Batch("calm", 200, 100.0, 7 * DAY)
    world = World([*flood, calm], 2.0, 256)
    await world.run()
    assert calm.done_at is not None
    # Five jobs take turns in every second slot; then the engine's pool.
    assert calm.done_at - calm.at <= 2 * (2 * 5 * 200 + 3 * 256)
