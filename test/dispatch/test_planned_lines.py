"""Lines in the order of a plan: each once, whatever happens to planner and store.

pytest test/dispatch/test_planned_lines.py
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from planned_input import JOB, PlannedInput, Request, long_answer, long_prompt
from pools import COST

from sglang.srt.blendserve.answering.line_source import SizedLine
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.dispatch import planned_lines, planner_client
from sglang.srt.blendserve.dispatch.engine_rooms import EngineRooms
from sglang.srt.blendserve.dispatch.first_lines import read_bytes
from sglang.srt.blendserve.dispatch.messages import Place
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
    assert lines.next_lines() is None  # enough of them are in the engine
    for line in first[:40]:
        lines.answered(line, 5)
    first += numbers(lines.next_lines())
    assert len(first) > FIRST_LINES
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
    if before:  # the plan that was made then knows nothing of what had ended
        assert lines.standing.ended is None


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


def test_before_its_store_has_begun_a_batch_is_answered_from_all_over_the_file(
    tmp_path: Path, planner: PlannerClient
) -> None:
    given = PlannedInput(tmp_path, SORTED, begun=False)
    lines = given.lines(planner)
    first = [line for _ in range(20) for line in numbers(lines.next_lines())]
    assert {line <= 300 for line in first} == {True, False}
    assert planner.process_id is None
    given.begun = True
    given.prepare()
    assert Counter(first + drain(lines)) == Counter(range(1, 601))


def test_lines_that_a_call_hands_out_while_the_batch_ends_are_not_lost(
    tmp_path: Path, planner: PlannerClient
) -> None:
    """The call goes on in a thread when nobody waits for it any more."""
    given = PlannedInput(tmp_path, SORTED)
    given.prepare()
    lines = given.lines(planner)
    planned_first(lines)
    inside, go_on = threading.Event(), threading.Event()
    read = lines._read

    def slowly(places: list[Place], engine: int) -> list[SizedLine] | None:
        inside.set()
        go_on.wait(10)
        return read(places, engine)

    lines._read = slowly  # type: ignore[method-assign]
    handing = threading.Thread(target=lines.next_lines)
    handing.start()
    assert inside.wait(10)
    left = lines.unanswered()
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.extend(line.line or 0 for line in left))
    asking.start()
    go_on.set()
    handing.join()
    asking.join()
    assert {*found} == {*range(1, 601)}


def test_a_reading_that_fails_and_is_made_again_loses_nothing(
    tmp_path: Path, planner: PlannerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    given.prepare()
    lines = given.lines(planner)
    seen = planned_first(lines)
    calls = 0

    def failing(*place: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise OSError(errno.EMFILE, "too many open files")
        return read_bytes(*place)

    monkeypatch.setattr(planned_lines, "read_bytes", failing)
    with pytest.raises(OSError, match="too many"):
        lines.next_lines()
    assert Counter(seen + drain(lines)) == Counter(range(1, 601))


def test_a_planner_that_does_not_start_is_done_without(
    tmp_path: Path, planner: PlannerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    given.prepare()

    def nothing(*_: Any, **__: Any) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(planner_client.subprocess, "Popen", nothing)
    assert drain(given.lines(planner)) == [*range(1, 601)]


def test_a_planner_that_does_not_answer_is_ended_and_done_without(
    tmp_path: Path, planner: PlannerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    given.prepare()
    lines = given.lines(planner)
    seen = planned_first(lines)
    monkeypatch.setattr(planner_client, "_ANSWER_SECONDS", 0.2)
    assert planner.process_id is not None
    os.kill(planner.process_id, signal.SIGSTOP)
    assert Counter(seen + drain(lines)) == Counter(range(1, 601))


def test_a_stopped_planner_keeps_nobody_from_ending_it(tmp_path: Path) -> None:
    given = PlannedInput(tmp_path, SORTED)
    given.prepare()
    with PlannerClient(SETTINGS) as planner:
        lines = given.lines(planner)
        planned_first(lines)
        process = psutil.Process(planner.process_id)
        process.suspend()
        waiting = threading.Thread(target=lines.next_lines)
        waiting.start()
        planner.end()
        waiting.join(20)
        assert not waiting.is_alive()
    assert not process.is_running()


def test_the_fault_of_one_job_is_its_own(tmp_path: Path, planner: PlannerClient) -> None:
    one = PlannedInput(tmp_path / "one", SORTED[:300])
    other = PlannedInput(tmp_path / "other", SORTED[300:])
    one.prepare()
    other.prepare()
    first, second = one.lines(planner), other.lines(planner)
    second._job = f"{JOB}2"
    seen = planned_first(first)
    process = planner.process_id
    shutil.rmtree(other.folder)
    assert drain(second) == [*range(1, 301)]
    seen += drain(first)
    assert Counter(seen) == Counter(range(1, 301))
    assert planner.process_id == process


def test_an_input_that_has_grown_ends_no_loop(tmp_path: Path, planner: PlannerClient) -> None:
    given = PlannedInput(tmp_path, SORTED[:20])
    given.prepare()
    lines = given.lines(planner)
    with given.file.open("ab") as file:
        file.write(given.file.read_bytes() * 3)
    found = drain(lines)
    assert {*found} >= {*range(1, 21)}


def test_the_share_of_the_work_that_is_done_grows_to_all_of_it(
    tmp_path: Path, planner: PlannerClient
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    given.prepare()
    lines = given.lines(planner)
    assert lines.standing.share is None
    out = planned_first(lines)
    shares, ended = [], []
    while (got := lines.next_lines()) != []:
        standing = lines.standing
        if standing.share is not None:
            assert standing.ended is not None
            shares.append(standing.share)
            ended.append(standing.ended)
        for line in out:
            lines.answered(line, 2 if line <= 300 else 400)
        out = numbers(got)
    assert (lines.standing.prepared, lines.standing.planned) == (600, 600)
    assert shares == sorted(shares)
    assert ended == sorted(ended)
    assert all(part <= share for part, share in zip(ended, shares, strict=True))
    assert shares[0] < 0.3
    assert 0.8 < shares[-1] <= 1
    for line in out:
        lines.answered(line, 2)
    assert lines.standing.share == lines.standing.ended == 1


def test_a_planner_hears_of_what_ends_while_no_line_is_asked_for(
    tmp_path: Path, planner: PlannerClient
) -> None:
    given = PlannedInput(tmp_path, SORTED)
    given.prepare()
    lines = given.lines(planner)
    out = planned_first(lines)
    out += numbers(lines.next_lines())
    before = lines.standing.share or 0.0
    lines.paused = True
    for line in out:
        lines.answered(line, 2 if line <= 300 else 400)
    lines.tell()
    assert lines.taken is not None
    assert not lines.taken.places
    assert lines.taken.work.running == pytest.approx(0)
    assert (lines.standing.share or 0.0) > before
    lines.paused = False
    assert sorted([*out, *drain(lines)]) == [*range(1, 601)]


def test_a_job_that_ends_leaves_its_places_in_engines_to_others(tmp_path: Path) -> None:
    """Whatever way: its lines have a result, are put aside, or are never answered."""
    given = PlannedInput(tmp_path, [long_answer(i) for i in range(400)])
    given.prepare()
    rooms = EngineRooms(2, 40)
    with PlannerClient(replace(SETTINGS, engines=2)) as planner:
        lines = given.lines(planner, rooms)
        handed: list[SizedLine] = []
        while {one.engine for one in handed} != {0, 1}:  # before there is a plan they are for any
            handed += [one for one in lines.next_lines() or () if one.engine is not None]
        assert sum(rooms.now().free) == 80 - len(handed)
        lines.answered(handed[0].line.line, 3)
        lines.put_aside(handed[1].line.line)
        assert sum(rooms.now().free) == 80 - len(handed) + 2
        lines.close()
        assert rooms.now().free == [40, 40]
        assert lines.next_lines()  # a call that nobody waits for any more
        assert rooms.now().free == [40, 40]
