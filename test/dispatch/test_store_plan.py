"""What a planner makes of a request store: who goes in next, with whom, and what is learned.

pytest test/dispatch/test_store_plan.py
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from planned_input import PlannedInput, Request, long_answer, long_prompt
from pools import COST

from sglang.srt.blendserve.dispatch.dispatcher import Dispatcher
from sglang.srt.blendserve.dispatch.store_plan import StorePlan
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.requests.request_store import RequestStore

RULES = PlanningRules(sample=0.0)
SORTED = [long_prompt(i) for i in range(40)] + [long_answer(i) for i in range(40)]


def plan_of(
    given: PlannedInput,
    *,
    job: str = "job",
    skip: set[int] = frozenset(),
    rules=RULES,
    dispatcher: Dispatcher | None = None,
) -> StorePlan:
    """A plan over the store of an input, which may still grow."""
    dispatcher = dispatcher or Dispatcher(RequestPool(COST, 4000, rules=rules))
    out = np.zeros(len(given.requests) + 1, dtype=np.bool_)
    out[[*skip]] = True
    return StorePlan(job, RequestStore(given.folder), dispatcher, out, most_tokens=4096)


def planned(given: PlannedInput, **options) -> StorePlan:
    """The same of a whole store."""
    given.prepare()
    plan = plan_of(given, **options)
    plan.whole = True
    while plan.look(7):
        pass
    replan(plan)
    return plan


def replan(plan: StorePlan) -> None:
    plan.pool.plan_if_due(quiet=True)


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


def test_the_plan_grows_with_the_store(tmp_path: Path) -> None:
    given = PlannedInput(tmp_path, SORTED)
    plan = plan_of(given)
    seen: list[int] = []
    for _ in range(8):
        given.prepare(10)
        while plan.look():
            pass
        replan(plan)
        seen += lines(plan, 4)
    plan.whole = True
    replan(plan)
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
    replan(plan)
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
    replan(unknown)
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
    replan(plan)
    assert sorted(lines(plan)) == [2, 3, 4, 5]


def two_jobs(place: Path) -> tuple[StorePlan, StorePlan]:
    """A job of long prompts and one of long answers, in one plan."""
    dispatcher = Dispatcher(RequestPool(COST, 4000, rules=RULES))
    plans = []
    for name, requests in (("prompts", SORTED[:40]), ("answers", SORTED[40:])):
        given = PlannedInput(place / name, requests)
        given.prepare()
        plan = plan_of(given, job=name, dispatcher=dispatcher)
        plan.whole = True
        plan.look()
        plans.append(plan)
    replan(plans[0])
    return plans[0], plans[1]


def test_each_job_gets_its_own_lines_out_of_one_plan(tmp_path: Path) -> None:
    prompts, answers = two_jobs(tmp_path)
    assert len(prompts.pool) == 80
    first = lines(answers, 5)
    assert len(first) == 5
    assert sorted(first + lines(answers)) == [*range(1, 41)]
    assert answers.all_handed_over
    assert not prompts.all_handed_over
    assert sorted(lines(prompts)) == [*range(1, 41)]


def test_the_window_has_as_many_of_either_end_over_all_jobs(tmp_path: Path) -> None:
    """A job whose requests are all alike takes one end's place, and another one fills the other."""
    prompts, answers = two_jobs(tmp_path)
    mixed = PlannedInput(tmp_path / "mixed", SORTED)
    mixed.prepare()
    both = plan_of(mixed, job="mixed", dispatcher=answers._dispatcher)
    both.whole = True
    both.look()
    replan(both)
    of_prompts = lines(prompts, 1)  # from the compute-bound end, which goes first
    got = lines(both, 1)
    assert got[0] > 40  # so now a long answer
    prompts.ended(of_prompts[0], 2)
    assert lines(both, 1)[0] <= 40


def test_a_job_that_ends_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    prompts, answers = two_jobs(tmp_path)
    gone = lines(prompts, 7)
    answers.ended(lines(answers, 1)[0], 300)
    prompts.close()
    assert {one.job for one in answers.pool.table.by_rid.values()} == {"answers"}
    replan(answers)
    assert len(gone) == 7
    assert len(lines(answers)) == 39


def test_a_late_job_is_merged_into_the_plan(tmp_path: Path) -> None:
    early = planned(PlannedInput(tmp_path / "early", SORTED))
    late = PlannedInput(tmp_path / "late", [long_answer(i) for i in range(5)])
    late.prepare()
    plan = plan_of(late, job="late", dispatcher=early._dispatcher)
    plan.whole = True
    plan.look()
    assert (plan.planned, plan.unplanned) == (0, 5)
    assert lines(plan) == []
    replan(plan)
    assert sorted(lines(plan)) == [1, 2, 3, 4, 5]
    assert (plan.planned, plan.unplanned) == (5, 0)
    assert sorted(lines(early)) == [*range(1, 81)]


def test_work_goes_from_left_to_running_to_done(tmp_path: Path) -> None:
    prompts, answers = two_jobs(tmp_path)
    before = answers.work
    total = before.compute + before.memory
    assert prompts.work.compute > before.compute
    assert total > 0
    assert before.running == before.done == 0
    got = lines(answers, 10)
    assert answers.work.running > 0
    for line in got:
        answers.ended(line, 400)
    work = answers.work
    assert work.running == pytest.approx(0)
    assert work.done + work.compute + work.memory == pytest.approx(total)
    lines(answers)
    assert answers.work.compute == pytest.approx(0)
    assert answers.work.memory == pytest.approx(0)


def test_a_job_that_was_paused_goes_on_from_both_ends(tmp_path: Path) -> None:
    """However many requests of others have gone in meanwhile."""
    dispatcher = Dispatcher(RequestPool(COST, 4000, rules=RULES))
    plans = []
    for name, requests in (("paused", SORTED), ("other", [long_prompt(i) for i in range(500)])):
        given = PlannedInput(tmp_path / name, requests)
        given.prepare()
        plans.append(plan_of(given, job=name, dispatcher=dispatcher))
        plans[-1].whole = True
        while plans[-1].look():
            pass
    paused, other = plans
    replan(paused)
    for line in lines(other):
        other.ended(line, 2)
    got = lines(paused, 20)
    assert sum(line <= 40 for line in got) == 10


def test_what_a_job_was_made_of_is_let_go_by_the_next_plan(tmp_path: Path) -> None:
    prompts, answers = two_jobs(tmp_path)
    for line in lines(prompts, 10):
        prompts.ended(line, 2)
    prompts.close()
    given = PlannedInput(tmp_path / "late", [long_answer(99)])
    given.prepare()
    late = plan_of(given, job="late", dispatcher=answers._dispatcher)
    late.whole = True
    late.look()
    replan(late)
    gc.collect()
    there = [one for one in gc.get_objects() if type(one) is PoolRequest]
    kept = [one for one in there if one.job == "prompts"]
    assert all(one.prompt.base is None for one in kept)  # a few, for what they taught: copies
    assert len(kept) <= 10
