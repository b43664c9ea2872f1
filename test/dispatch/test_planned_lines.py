"""Lines in the order of a plan: each once, whatever happens to planner and store.

pytest test/dispatch/test_planned_lines.py
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from planned_input import JOB, PlannedInput, Request, long_answer, long_prompt
from pools import COST

from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.dispatch.planned_lines import FIRST_LINES, PlannedLines
from sglang.srt.blendserve.dispatch.planner import PlannerSettings
from sglang.srt.blendserve.dispatch.planner_client import PlannerClient

SETTINGS = PlannerSettings(COST, 4000, most_tokens=4096)
SORTED = [long_prompt(i) for i in range(300)] + [long_answer(i) for i in range(300)]


@pytest.fixture
def planner() -> Iterator[PlannerClient]:
    with PlannerClient(SETTINGS) as client:
        yield client


def numbers(got: list | None) -> list[int]:
    return [one.line.line for one in got or ()]


def drain(lines: PlannedLines, seconds: float = 60.0) -> list[int]:
    """All that is left, in order."""
    seen: list[int] = []
    deadline = time.monotonic() + seconds
    while (got := lines.next_lines()) != []:
        assert time.monotonic() < deadline, f"{len(seen)} lines so far"
        seen += numbers(got)
        if got is None:
            time.sleep(0.01)
    return seen


def planned_first(lines: PlannedLines) -> list[int]:
    """The first lines that a plan hands over, and those before them."""
    seen: list[int] = []
    while lines.taken is None or not lines.taken.planned:
        got = lines.next_lines()
        assert got != []
        seen += numbers(got)
    return seen


def test_a_file_sorted_by_source_comes_mixed(tmp_path: Path, planner: PlannerClient) -> None:
    given = PlannedInput(tmp_path, SORTED)
    given.prepare()
    seen = drain(given.lines(planner))
    assert Counter(seen) == Counter(range(1, 601))
    first = seen[:100]
    assert 20 <= sum(line <= 300 for line in first) <= 80


def test_bad_lines_come_as_errors_and_lines_with_results_not_at_all(
    tmp_path: Path, planner: PlannerClient
) -> None:
    requests = [*SORTED[:20], Request([]), *SORTED[300:320], Request([])]
    given = PlannedInput(tmp_path, requests, answered={3, 21})
    given.prepare()
    lines, found = given.lines(planner), {}
    while (got := lines.next_lines()) != []:
        found.update({one.line.line: one.line for one in got or ()})
    assert {*found} == {*range(1, 43)} - {3, 21}
    assert [n for n, line in found.items() if not isinstance(line, BatchLine)] == [42]


def test_planned_lines_have_the_token_ids_of_their_prompts(
    tmp_path: Path, planner: PlannerClient
) -> None:
    several = Request([[5, 6], [7], [8, 9, 10]])
    given = PlannedInput(tmp_path, [several, *SORTED[:3], several])
    given.prepare()
    lines = given.lines(planner)
    found: dict[int, list[list[int]]] = {}
    while (got := lines.next_lines()) != []:
        for one in got or ():
            if one.prompts is not None:
                found[one.line.line or 0] = [ids.tolist() for ids in one.prompts() or ()]
    assert found.keys() & {1, 5}
    for line in found.keys() & {1, 5}:
        assert found[line] == [[5, 6], [7], [8, 9, 10]]
    for line in found.keys() & {2, 3, 4}:
        assert found[line] == [[*SORTED[line - 2].prompts[0]]]


def test_before_there_is_a_plan_lines_come_from_all_over_the_file(
    tmp_path: Path, planner: PlannerClient
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    lines = given.lines(planner)
    first: list[int] = []
    while (got := lines.next_lines()) is not None:
        first += numbers(got)
    assert FIRST_LINES <= len(first) < FIRST_LINES + 8
    half = first[:32]
    assert 8 <= sum(line <= 300 for line in half) <= 24
    assert lines.next_lines() is None  # it waits for the plan
    given.prepare()
    assert Counter(first + drain(lines)) == Counter(range(1, 601))


def test_the_planner_learns_from_lines_ahead_of_the_plan(
    tmp_path: Path, planner: PlannerClient
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    lines = given.lines(planner)
    for one in lines.next_lines() or ():
        lines.answered(one.line.line or 0, 5)
    given.prepare()
    rest = drain(lines)
    assert len(rest) == 600 - 4
    assert lines.taken is not None
    assert lines.taken.prepared == 600


@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_planner_that_is_killed_costs_no_line_and_gives_none_twice(
    tmp_path: Path, planner: PlannerClient, before: int
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    lines = given.lines(planner)
    seen = numbers(lines.next_lines())
    given.prepare()
    for _ in range(before):
        seen += planned_first(lines) + numbers(lines.next_lines())
    assert planner.process_id is not None
    os.kill(planner.process_id, signal.SIGKILL)
    assert Counter(seen + drain(lines)) == Counter(range(1, 601))


def test_without_a_planner_the_rest_goes_in_the_order_of_the_file(
    tmp_path: Path, planner: PlannerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    lines = given.lines(planner)
    first = numbers(lines.next_lines())
    given.prepare()
    monkeypatch.setattr(PlannerClient, "_start", lambda _: None)
    assert planner.process_id is not None
    os.kill(planner.process_id, signal.SIGKILL)
    rest = drain(lines)
    assert rest == sorted(rest)
    assert Counter(first + rest) == Counter(range(1, 601))


def test_without_a_store_the_rest_goes_in_the_order_of_the_file(
    tmp_path: Path, planner: PlannerClient
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    lines = given.lines(planner)
    first = numbers(lines.next_lines())
    given.failure = OSError("the disk is gone")
    rest = drain(lines)
    assert rest == sorted(rest)
    assert Counter(first + rest) == Counter(range(1, 601))


def test_unanswered_lines_are_those_handed_out_and_those_never_read(
    tmp_path: Path, planner: PlannerClient
) -> None:
    given = PlannedInput(tmp_path, SORTED, answered={600})
    given.prepare()
    lines = given.lines(planner)
    planned_first(lines)
    got = numbers(lines.next_lines())
    for line in got[:10]:
        lines.answered(line, 3)
        given.answered.add(line)
    left = Counter(line.line for line in lines.unanswered())
    assert {*left} == {*range(1, 600)} - {*got[:10]}
    assert max(left.values()) == 1


def test_two_jobs_are_planned_by_one_process(tmp_path: Path, planner: PlannerClient) -> None:
    one = PlannedInput(tmp_path / "one", SORTED[:300])
    other = PlannedInput(tmp_path / "other", SORTED[300:])
    one.prepare()
    other.prepare()
    first, second = one.lines(planner), other.lines(planner)
    second._job = f"{JOB}2"
    planned_first(first)
    process = planner.process_id
    planned_first(second)
    assert planner.process_id == process
    assert first._planner is second._planner
    drain(first)
    drain(second)
