"""The planner's jobs: when they are planned, and what a fault of one is to the others.

pytest test/dispatch/test_planner.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planned_input import PlannedInput, long_answer, long_prompt
from pools import COST

from sglang.srt.blendserve.dispatch import planner as module
from sglang.srt.blendserve.dispatch.messages import pack, unpack
from sglang.srt.blendserve.dispatch.planner import Planner, PlannerSettings

SETTINGS = PlannerSettings(COST, 4000, most_tokens=4096)


class Asked:
    """A planner, and the messages to it."""

    def __init__(self) -> None:
        self.planner = Planner(SETTINGS)

    def open(self, job: str, given: PlannedInput) -> None:
        skip = np.zeros(len(given.requests) + 1, dtype=np.bool_)
        self._ask({"op": "open", "job": job, "folder": str(given.folder)}, skip.tobytes())

    def take(self, job: str, *, whole: bool, most: int = 1000) -> dict[str, Any]:
        news: list[Any] = [[], [], whole]
        return self._ask({"op": "take", "job": job, "most": most, "news": news})

    def lines(self, job: str, *, whole: bool) -> list[int]:
        return sorted(place[0] for place in self.take(job, whole=whole)["places"])

    def work(self) -> None:
        """Let it do all that it can do now."""
        for _ in range(20):
            self.planner.work(1.0)

    def _ask(self, header: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        reply, _ = unpack(self.planner.answer(pack(header, body)))
        return reply


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(module, "FIRST_PLAN", 30)
    return Asked()


def test_nothing_is_planned_before_there_is_enough(tmp_path: Path, asked: Asked) -> None:
    given = PlannedInput(tmp_path, [long_prompt(i) for i in range(60)])
    asked.open("job", given)
    given.prepare(29)
    asked.work()
    found = asked.take("job", whole=False)
    assert (found["prepared"], found["planned"], found["places"]) == (29, 0, [])
    given.prepare(1)
    asked.work()
    assert len(asked.lines("job", whole=False)) == 30
    assert not asked.take("job", whole=False)["ended"]  # the store may grow


def test_a_small_job_is_planned_while_a_large_one_is_still_prepared(
    tmp_path: Path, asked: Asked
) -> None:
    large = PlannedInput(tmp_path / "large", [long_prompt(i) for i in range(200)])
    small = PlannedInput(tmp_path / "small", [long_answer(i) for i in range(4)])
    asked.open("large", large)
    large.prepare(100)
    asked.work()
    asked.open("small", small)
    small.prepare()
    asked.take("small", whole=True)
    asked.work()
    assert asked.lines("small", whole=True) == [1, 2, 3, 4]
    assert asked.take("small", whole=True)["ended"]
    assert len(asked.lines("large", whole=False)) == 100


def test_a_job_whose_store_cannot_be_read_is_unknown_and_the_others_go_on(
    tmp_path: Path, asked: Asked
) -> None:
    fine = PlannedInput(tmp_path / "fine", [long_prompt(i) for i in range(8)])
    broken = PlannedInput(tmp_path / "broken", [long_answer(i) for i in range(8)])
    for name, given in (("fine", fine), ("broken", broken)):
        asked.open(name, given)
        given.prepare()
    (broken.folder / "line.int64").unlink()
    asked.take("fine", whole=True)
    asked.work()
    assert asked.take("broken", whole=True).get("unknown")
    assert asked.lines("fine", whole=True) == [*range(1, 9)]
    assert not asked.planner.pool.requests_of("broken")


def test_after_a_plan_that_fails_jobs_are_opened_again(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PlannedInput(tmp_path, [long_prompt(i) for i in range(8)])
    given.prepare()
    asked.open("job", given)
    asked.take("job", whole=True)

    def failing(*_: Any, **__: Any) -> bool:
        raise ArithmeticError("a fault in it")

    monkeypatch.setattr(asked.planner.pool, "plan_if_due", failing)
    asked.work()
    assert asked.take("job", whole=True).get("unknown")
    asked.open("job", given)
    asked.take("job", whole=True)
    asked.work()
    assert asked.lines("job", whole=True) == [*range(1, 9)]


def test_a_growing_job_beside_a_large_one_goes_on(tmp_path: Path, asked: Asked) -> None:
    """What it gets prepared is never a share of everything that is worth a plan by itself."""
    large = PlannedInput(tmp_path / "large", [long_prompt(i) for i in range(400)])
    growing = PlannedInput(tmp_path / "growing", [long_answer(i) for i in range(400)])
    for name, given in (("large", large), ("growing", growing)):
        asked.open(name, given)
    large.prepare()
    asked.take("large", whole=True, most=0)
    asked.work()
    got: list[int] = []
    for _ in range(6):
        growing.prepare(40)
        asked.work()
        more = asked.lines("growing", whole=False)
        assert more
        got += more
    assert sorted(got) == [*range(1, 241)]


def test_lines_that_went_ahead_while_a_plan_was_made_cost_no_plan(
    tmp_path: Path, asked: Asked
) -> None:
    """They have rows only when the plan is made without these."""
    given = PlannedInput(tmp_path, [long_prompt(i) for i in range(100)])
    asked.open("job", given)
    given.prepare(60)
    assert asked.planner._jobs["job"].look()
    asked.planner.pool.plan_if_due(quiet=True)  # begun, and not looked at again yet
    news: list[Any] = [[70, 71], [[71, 12]], False]
    asked._ask({"op": "take", "job": "job", "most": 0, "news": news})
    given.prepare(40)
    asked.work()
    found = asked.take("job", whole=True)
    assert not found.get("unknown")
    lines = [place[0] for place in found["places"]]
    asked.work()
    lines += asked.lines("job", whole=True)
    assert sorted(lines) == [line for line in range(1, 101) if line not in (70, 71)]


def test_a_job_that_is_closed_while_the_first_plan_is_made_holds_up_no_other(
    tmp_path: Path, asked: Asked
) -> None:
    goes = PlannedInput(tmp_path / "goes", [long_prompt(i) for i in range(30)])
    stays = PlannedInput(tmp_path / "stays", [long_answer(i) for i in range(60)])
    for name, given, rows in (("goes", goes, 30), ("stays", stays, 5)):
        asked.open(name, given)
        given.prepare(rows)
    asked.planner.work(0.0)
    assert asked.planner.pool.planning
    asked.planner.close("goes")
    stays.prepare(55)
    asked.work()
    assert len(asked.lines("stays", whole=True)) == 60
