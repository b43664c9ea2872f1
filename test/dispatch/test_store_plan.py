"""What a planner makes of a request store: who goes in next, with whom, and what is learned.

pytest test/dispatch/test_store_plan.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from planned_input import PlannedInput, Request, long_answer, long_prompt
from pools import COST

from sglang.srt.blendserve.dispatch.store_plan import StorePlan
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.requests.request_store import RequestStore

RULES = PlanningRules(sample=0.0)
SORTED = [long_prompt(i) for i in range(40)] + [long_answer(i) for i in range(40)]


def plan_of(
    given: PlannedInput, *, skip: set[int] = frozenset(), first_plan: int = 1, rules=RULES
) -> StorePlan:
    """A plan over the store of an input, which may still grow."""
    pool = RequestPool(COST, 4000, rules=rules)
    out = np.zeros(len(given.requests) + 1, dtype=np.bool_)
    out[[*skip]] = True
    return StorePlan(RequestStore(given.folder), pool, out, most_tokens=4096, first_plan=first_plan)


def planned(given: PlannedInput, **options) -> StorePlan:
    """The same of a whole store."""
    given.prepare()
    plan = plan_of(given, **options)
    plan.whole = True
    while plan.look(7):
        pass
    plan.plan_if_due()
    return plan


def lines(plan: StorePlan, most: int = 1000) -> list[int]:
    return [place.line for place in plan.take(most)]


def test_a_window_has_as_many_of_either_end_of_a_file_sorted_by_source(tmp_path: Path) -> None:
    plan = planned(PlannedInput(tmp_path, SORTED))
    got = lines(plan, 20)
    assert sum(line <= 40 for line in got) == 10


def test_who_has_ended_is_replaced_from_the_same_end(tmp_path: Path) -> None:
    plan = planned(PlannedInput(tmp_path, SORTED))
    got = lines(plan, 20)
    for line in [line for line in got if line > 40][:6]:
        plan.ended(line, 400)
    assert all(line > 40 for line in lines(plan, 6))
    assert {line <= 40 for line in lines(plan, 2)} == {True, False}


def test_where_one_end_is_used_up_the_other_one_goes_on(tmp_path: Path) -> None:
    plan = planned(PlannedInput(tmp_path, SORTED))
    assert len(lines(plan)) == 80


def test_every_line_is_handed_over_once_with_its_place(tmp_path: Path) -> None:
    given = PlannedInput(tmp_path, [*SORTED, Request([])])
    plan = planned(given)
    places = plan.take(1000)
    assert sorted(place.line for place in places) == [*range(1, 81)]
    data = given.file.read_bytes()
    for place in places:
        piece = data[place.offset : place.offset + place.length]
        assert f'"custom_id": "{place.line}"'.encode() in piece
    assert plan.all_handed_over
    assert lines(plan) == []


def test_prompts_and_answers_of_a_line_go_in_together(tmp_path: Path) -> None:
    several = Request([[1, 2, 3], [4, 5, 6]], choices=3)
    plan = planned(PlannedInput(tmp_path, [several, *SORTED[:4]]))
    assert len(plan.pool) == 10
    assert 1 in lines(plan, 5)
    assert not len(plan.pool)
    plan.ended(1, 60)
    assert [tokens for _, tokens in plan.pool.table.finished] == [10] * 6


def test_lines_that_have_a_result_are_left_out(tmp_path: Path) -> None:
    plan = planned(PlannedInput(tmp_path, SORTED), skip={2, 80})
    assert sorted(lines(plan)) == [line for line in range(1, 81) if line not in (2, 80)]


def test_nothing_is_planned_before_there_is_enough(tmp_path: Path) -> None:
    given = PlannedInput(tmp_path, SORTED)
    plan = plan_of(given, first_plan=30)
    given.prepare(29)
    assert plan.look()
    plan.plan_if_due()
    assert lines(plan) == []
    given.prepare(1)
    plan.look()
    plan.plan_if_due()
    assert len(lines(plan)) == 30
    assert not plan.all_handed_over  # the store may grow


def test_the_plan_grows_with_the_store(tmp_path: Path) -> None:
    given = PlannedInput(tmp_path, SORTED)
    plan = plan_of(given)
    seen: list[int] = []
    for _ in range(8):
        given.prepare(10)
        while plan.look():
            pass
        plan.plan_if_due()
        seen += lines(plan, 4)
    plan.whole = True
    plan.plan_if_due()
    seen += lines(plan)
    assert sorted(seen) == [*range(1, 81)]


def test_lines_ahead_of_the_plan_are_not_handed_over_again_and_teach_lengths(
    tmp_path: Path,
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    plan = plan_of(given)
    plan.started([1, 41, 42])
    plan.ended(41, 250)
    plan.ended(42, None)
    given.prepare()
    plan.whole = True
    plan.look()
    plan.plan_if_due()
    assert [tokens for _, tokens in plan.pool.table.finished] == [250]
    assert len(plan.pool.table.running) == 1
    assert sorted(lines(plan)) == [line for line in range(1, 81) if line not in (1, 41, 42)]


def test_a_sample_goes_first(tmp_path: Path) -> None:
    plan = planned(PlannedInput(tmp_path, SORTED), rules=PlanningRules(sample=0.2))
    first = lines(plan, 16)
    assert sum(line <= 40 for line in first) in range(4, 13)


def test_prompts_that_only_the_engine_knows_share_nothing(tmp_path: Path) -> None:
    given = PlannedInput(tmp_path, [Request([[1, 2, 3, 4]]) for _ in range(8)])
    plan = planned(given)
    assert plan.pool.current.plan is not None
    assert plan.pool.current.plan.sharing > 0.5
    columns = given.folder / "flags.uint8"
    columns.write_bytes(bytes(8))  # no row is exact
    unknown = plan_of(given)
    unknown.whole = True
    unknown.look()
    unknown.plan_if_due()
    assert unknown.pool.current.plan is not None
    assert unknown.pool.current.plan.sharing == 0
    assert len(lines(unknown)) == 8


def test_a_line_that_has_ended_before_its_rows_come_leaves_none_behind(tmp_path: Path) -> None:
    several = Request([[1, 2, 3], [4, 5, 6]], choices=2)
    given = PlannedInput(tmp_path, [several, *SORTED[:4]])
    plan = plan_of(given)
    plan.started([1])
    plan.ended(1, 40)
    given.prepare()
    plan.whole = True
    while plan.look(1):  # a line's rows are taken up together all the same
        pass
    plan.plan_if_due()
    assert sorted(lines(plan)) == [2, 3, 4, 5]
