"""Nobody waits for ever: how often a request is overtaken, whatever arrives after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_engine import Asked, Played
from pools import COST

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.pool.patience import Patience
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool

TURNS = PlanningRules().turns


def request(number: int, job: str, rng: np.random.Generator) -> PoolRequest:
    """A prompt and an output of any length: the middle of a scan order is what waits longest."""
    prompt = rng.integers(0, 4, int(rng.integers(1, 40))).astype(np.int32)
    return PoolRequest(f"r{number}", prompt, int(rng.integers(1, 400)), known_length=True, job=job)


class Line:
    """A pool that is kept full, and served from both ends of its plan, one request at a time."""

    def __init__(self, size: int, jobs: Iterator[str], rules: PlanningRules | None = None) -> None:
        self.pool = RequestPool(COST, 10_000, rules=rules)
        self.size, self.jobs, self.rng = size, jobs, np.random.default_rng(0)
        self.arrived: dict[str, int] = {}
        self.waits: dict[str, list[int]] = {}
        self.starts = self._number = 0
        self.ended = False

    def fill(self) -> None:
        while len(self.pool) < self.size and not self.ended:
            job = next(self.jobs, None)
            if job is None:
                self.ended = True
                return
            one = request(self._number, job, self.rng)
            self._number += 1
            self.arrived[one.rid] = self.starts
            self.pool.add(one)

    def serve(self) -> None:
        self.pool.plan_if_due(quiet=False)
        side = Side.MEMORY if self.starts % 2 else Side.COMPUTE
        one = self.pool.patience.overdue() or self.pool.current.peek(side)
        if one is None:
            self.pool.plan_if_due(quiet=True)
            one = self.pool.current.peek(side)
        assert one is not None
        self.pool.start(one)
        self.starts += 1
        self.waits.setdefault(one.job, []).append(self.starts - self.arrived.pop(one.rid))
        self.pool.finish(one, one.max_tokens)

    def run(self, arrivals: int) -> Line:
        while self._number < arrivals and not self.ended:
            self.fill()
            self.serve()
        return self


def for_ever(job: str) -> Iterator[str]:
    while True:
        yield job


def longest(line: Line) -> int:
    """Starts that somebody has waited for, or still waits."""
    still = [line.starts - at for at in line.arrived.values()]
    return max(*(max(waits) for waits in line.waits.values()), *still)


def test_eleven_pools_of_arrivals_overtake_nobody_for_ever() -> None:
    """As it was found: 88,700 arrivals through a pool of 8,000, a tenth as large."""
    line = Line(800, for_ever("one")).run(8870)
    assert longest(line) <= (TURNS + 1) * 800
    assert not [at for rid, at in line.arrived.items() if int(rid[1:]) < 800]
    impatient = Line(800, for_ever("one"), PlanningRules(turns=1e9)).run(8870)
    assert longest(impatient) > (TURNS + 1) * 800


def test_a_pool_that_is_served_once_never_leaves_its_plan() -> None:
    def order(turns: float) -> list[str]:
        line = Line(500, iter(["a"] * 300 + ["b"] * 200), PlanningRules(turns=turns))
        line.fill()
        left = []
        while len(line.pool):
            before = set(line.arrived)
            line.serve()
            left += before - set(line.arrived)
        return left

    assert order(TURNS) == order(1e9)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(8, 120),
    jobs=st.integers(1, 6),
    least=st.integers(1, 64),
)
def test_no_mix_of_jobs_overtakes_a_request_without_bound(
    seed: int, size: int, jobs: int, least: int
) -> None:
    rng = np.random.default_rng(seed)

    def mixed() -> Iterator[str]:
        while True:
            yield from [f"job{rng.integers(jobs)}"] * int(rng.integers(1, 3 * size))

    line = Line(size, mixed(), PlanningRules(least_explained=least)).run(25 * size)
    assert longest(line) <= (TURNS + 1) * size


@pytest.mark.parametrize("whole", [0, 200])
def test_what_waits_before_a_window_overtakes_as_well(whole: int) -> None:
    """A pool that holds forty requests of two hundred: in a pool of all, one in the middle of the
    plan could wait for four hundred starts, not for eighty."""
    rng = np.random.default_rng(0)
    pool = RequestPool(COST, 10_000)
    requests = [request(number, "job", rng) for number in range(500)]
    for one in requests:
        one.job_requests = whole
    middle = PoolRequest("middle", np.arange(20, dtype=np.int32), 100, True, "job", whole)
    for one in [middle, *requests[:39]]:
        pool.add(one)
    starts = 0
    pool.plan_if_due(quiet=True)
    while pool.patience.overdue() is not middle:
        one = next(one for one in pool.table.everyone_waiting() if one is not middle)
        pool.start(one)
        pool.finish(one, 5)
        starts += 1
        pool.add(requests[39 + starts])
        pool.plan_if_due(quiet=True)
    explained = max(whole, 40)
    assert starts == TURNS * explained


def test_a_small_job_is_done_in_starts_that_its_size_explains() -> None:
    """A hundred requests behind a pool full of another job's, again and again."""
    waits: list[int] = []

    def jobs() -> Iterator[str]:
        for number in range(12):
            yield from ["large"] * 1700
            yield from [f"small{number}"] * 100

    line = Line(2000, jobs()).run(20_000)
    for job, waited in line.waits.items():
        if job != "large" and len(waited) == 100:
            waits.append(max(waited))
    assert len(waits) >= 8
    # Up to three jobs are there at once; a new plan, which knows them, comes after a quarter.
    explained = 3 * 100 + PlanningRules().least_explained
    assert np.percentile(waits, 95) <= TURNS * explained + 0.25 * 2000
    assert longest(line) <= (TURNS + 1) * 2000


@pytest.mark.parametrize("pace", ["marginal", "fixed"])
def test_the_step_policy_serves_the_overdue_first(pace: str) -> None:
    """Continuous arrivals through the real policy and an engine with little memory."""
    rng = np.random.default_rng(1)
    asked = []
    for number in range(600):
        prompt = rng.integers(0, 50, int(rng.integers(2, 60))).tolist()
        asked.append(Asked(prompt, 60, int(rng.integers(1, 60)), arrives=number // 2))

    def overtaken(turns: float) -> int:
        rules = PlanningRules(turns=turns, least_explained=8)
        played = Played(asked, pace, slots=900, max_tokens=96, rules=rules).run()
        assert sorted(played.ended) == [*range(600)]
        place = {number: at for at, number in enumerate(dict.fromkeys(played.started))}
        return max(place[number] - number for number in range(600))

    assert overtaken(0.5) < overtaken(1e9)


@settings(deadline=None)
@given(st.data())
def test_deadlines_are_those_of_a_look_at_all_that_wait(data: st.DataObject) -> None:
    """Whatever comes, starts, is given back or ends between two plans."""
    waiting: list[PoolRequest] = []
    running: list[PoolRequest] = []
    returned: list[PoolRequest] = []
    patience = Patience(lambda one: one in waiting, turns=2.0, least=3)
    prompt = np.zeros(1, dtype=np.int32)
    explained: dict[str, int] = {}
    for number in range(data.draw(st.integers(1, 60), label="events")):
        kind = data.draw(st.sampled_from("aaasssrep"), label="event")
        everyone = {"s": [*waiting, *returned], "r": running}.get(kind, [*waiting, *running])
        if kind == "a":
            job = data.draw(st.sampled_from("xyz"), label="job")
            waiting.append(PoolRequest(f"r{number}", prompt, 1, job=job))
            patience.arrived(waiting[-1])
        elif kind == "p":
            rest = [*returned, *waiting]
            jobs = Counter(one.job for one in rest)
            for one in rest:
                most = min(len(rest), len(jobs) * jobs[one.job] + 3)
                explained[one.rid] = max(explained.get(one.rid, 0), most)
            patience.planned(iter(rest))
        elif everyone:
            one = data.draw(st.sampled_from(everyone), label="request")
            for some in (waiting, running, returned):
                if one in some:
                    some.remove(one)
            if kind == "s":
                running.append(one)
                patience.started(one)
            elif kind == "r":
                returned.append(one)
                patience.put_back(one)
            else:
                patience.ended(one)
        for one in [*waiting, *running, *returned]:
            assert one.explained == explained.get(one.rid, 0)
        late = [
            (one.arrived_at + 2.0 * one.explained, int(one.rid[1:]))
            for one in waiting
            if one.explained and one.arrived_at + 2.0 * one.explained <= patience.starts
        ]
        first = patience.overdue()
        assert (None if first is None else int(first.rid[1:])) == (min(late)[1] if late else None)
