"""One order, several engines: who gets what, and how much.

pytest test/dispatch/test_many_engines.py
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from planned_input import PlannedInput, Request, long_answer, long_prompt
from pools import COST

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.divided_order import PIECE, DividedOrder
from sglang.srt.blendserve.dispatch.engine_rooms import EngineRooms, Rooms
from sglang.srt.blendserve.dispatch.engine_windows import EngineWindows, Held
from sglang.srt.blendserve.dispatch.messages import News
from sglang.srt.blendserve.dispatch.planner import Planner, PlannerSettings
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.requests.request_store import RequestStore

SIDES = [*Side]


@given(st.data(), st.integers(1, 5), st.integers(0, 300))
def test_each_request_goes_to_one_engine_once(
    data: st.DataObject, engines: int, requests: int
) -> None:
    order = DividedOrder(
        np.arange(requests, dtype=np.int64),
        engines,
        together=lambda one, other: one // 7 == other // 7,
        fill=lambda index: 0.02 * (index % 5),
    )
    waiting = {*range(requests)} - data.draw(st.sets(st.integers(0, max(requests, 1))))
    left = len(waiting)
    turns = data.draw(st.randoms(use_true_random=False))
    while waiting:
        index = order.peek(turns.randrange(engines), turns.choice(SIDES), waiting.__contains__)
        assert index is not None  # an engine that asks gets one as long as any waits
        waiting.remove(index)
        left -= 1
    assert left == 0
    assert all(
        order.peek(engine, side, waiting.__contains__) is None
        for engine in range(engines)
        for side in Side
    )


def dealt(order: DividedOrder, engines: int, requests: int) -> dict[int, list[int]]:
    """What engines get that ask in turn, from either end in turn."""
    got: dict[int, list[int]] = defaultdict(list)
    waiting = {*range(requests)}
    turn = 0
    while waiting:
        engine, side = turn % engines, SIDES[turn // engines % 2]
        index = order.peek(engine, side, waiting.__contains__)
        assert index is not None
        waiting.remove(index)
        got[engine].append(index)
        turn += 1
    return got


def test_questions_about_a_document_stay_together() -> None:
    questions, documents, engines = 6, 500, 4
    order = DividedOrder(
        np.arange(documents * questions, dtype=np.int64),
        engines,
        together=lambda one, other: one // questions == other // questions,
    )
    got = dealt(order, engines, documents * questions)
    whose = defaultdict(set)
    for engine, requests in got.items():
        for index in requests:
            whose[index // questions].add(engine)
    several = sum(len(engines) > 1 for engines in whose.values())
    assert several <= 2 * engines  # where one engine takes what another one has left


def test_one_engine_takes_from_the_ends_as_ever() -> None:
    order = DividedOrder(np.arange(10, dtype=np.int64))
    waiting = {*range(10)}
    for side, first in ((Side.COMPUTE, 0), (Side.MEMORY, 9), (Side.MEMORY, 8), (Side.COMPUTE, 1)):
        assert order.peek(0, side, waiting.__contains__) == first
        waiting.remove(first)


def test_the_few_with_the_longest_answers_go_to_many_engines() -> None:
    requests, engines = 4000, 4
    order = DividedOrder(
        np.arange(requests, dtype=np.int64), engines, fill=lambda index: float(index >= 3992) / 10
    )
    waiting = {*range(requests)}
    whose = Counter()
    for turn in range(8):
        index = order.peek(turn % engines, Side.MEMORY, waiting.__contains__)
        assert index is not None
        assert index >= 3992
        waiting.remove(index)
        whose[turn % engines] += 1
    assert set(whose.values()) == {2}


def test_an_engine_that_finds_nothing_takes_half_of_what_another_one_has_left() -> None:
    order = DividedOrder(np.arange(2 * PIECE * 8, dtype=np.int64), 2)
    waiting = {*range(2 * PIECE * 8)}
    order.peek(0, Side.COMPUTE, waiting.__contains__)
    waiting = {*range(PIECE)}  # all others have gone some other way
    assert order.peek(1, Side.MEMORY, waiting.__contains__) == PIECE // 2
    waiting -= {*range(PIECE // 2, PIECE)}
    assert order.peek(0, Side.COMPUTE, waiting.__contains__) == 0


def held(engine: int, seconds: float, tokens: float) -> Held:
    return Held(engine, Side.COMPUTE, RemainingWork(seconds, 0.0), tokens)


def test_an_engine_with_more_than_fits_gets_at_most_its_share_of_what_is_left() -> None:
    windows = EngineWindows(2, 1000)
    windows.add("a", held(0, 10.0, 5000.0))
    windows.add("b", held(1, 1.0, 100.0))
    plenty, little = RemainingWork(100.0, 0.0), RemainingWork(2.0, 0.0)
    assert windows.next_engine([5, 0], plenty) == 0
    assert windows.next_engine([5, 0], little) is None
    assert windows.next_engine([5, 4], little) == 1
    windows.remove("a")
    assert windows.next_engine([5, 4], little) == 0


def test_an_engine_that_has_nothing_to_do_gets_more_whatever_it_holds_in_the_books() -> None:
    windows = EngineWindows(2, 1000)
    for number in range(2):
        windows.add(str(number), held(number, 10.0, 5000.0))
    nothing = RemainingWork(0.0, 0.0)
    assert windows.next_engine([5, 5], nothing, [False, False]) is None
    assert windows.next_engine([5, 5], nothing, [False, True]) == 1


def test_the_engine_with_most_room_is_next() -> None:
    windows = EngineWindows(3, 1000)
    assert windows.next_engine([3, 9, 9], RemainingWork(1.0, 1.0)) == 1
    assert windows.next_engine([0, -1, 0], RemainingWork(1.0, 1.0)) is None


def test_an_engine_that_has_lost_all_holds_nothing() -> None:
    windows = EngineWindows(2, 1000)
    windows.add("a", held(0, 10.0, 5000.0))
    windows.lost(0)
    assert windows.next_engine([5, -1], RemainingWork(0.0, 0.0)) == 0
    assert windows.side(0) is Side.COMPUTE
    assert windows.remove("a") == RemainingWork(10.0, 0.0)
    assert windows.next_engine([5, -1], RemainingWork(0.0, 0.0)) == 0


def test_a_place_in_an_engine_that_has_died_since_frees_none() -> None:
    rooms = EngineRooms(2, 3)
    places = [rooms.take(0), rooms.take(0)]
    assert rooms.now() == Rooms([1, 3], [0, 0])
    rooms.lost(0)
    assert rooms.now() == Rooms([-1, 3], [1, 0])
    rooms.joined(0)
    for place in places:
        rooms.leave(place)
    assert rooms.now().free == [3, 3]
    rooms.leave(rooms.take(0))
    assert rooms.now().free == [3, 3]


def planner_over(
    folder: Path, requests: list[Request], engines: int, kv_slots: int = 4000
) -> Planner:
    """A planner with one job, of which all is planned."""
    source = PlannedInput(folder, requests)
    source.prepare()
    planner = Planner(PlannerSettings(COST, kv_slots, most_tokens=4096, engines=engines))
    planner.open("job", RequestStore(source.folder), np.zeros(len(requests) + 1, dtype=np.bool_))
    planner.take("job", 0, News([], [], True))
    while planner.work(5.0):
        pass
    return planner


def test_lines_go_to_the_engine_that_has_room_from_both_ends(tmp_path: Path) -> None:
    requests = [long_prompt(i) for i in range(100)] + [long_answer(i) for i in range(100)]
    planner = planner_over(tmp_path, requests, 2)
    free, got = [40, 40], defaultdict(list)
    while any(free):
        taken = planner.take("job", 64, News([], [], True), Rooms(free, [0, 0]))
        assert len(taken.places) <= 16
        free[taken.engine] -= len(taken.places)
        got[taken.engine] += [place.line for place in taken.places]
    assert not set(got[0]) & set(got[1])
    for lines in got.values():
        assert 16 <= sum(line <= 100 for line in lines) <= 24


def test_nobody_has_room_is_not_the_end(tmp_path: Path) -> None:
    planner = planner_over(tmp_path, [long_prompt(i) for i in range(9)], 2)
    assert not planner.take("job", 64, News([], [], True), Rooms([0, -1], [0, 0])).ended
    taken = planner.take("job", 64, News([], [], True), Rooms([0, 20], [0, 0]))
    assert taken.engine == 1
    while taken.places:
        taken = planner.take("job", 64, News([], [], True), Rooms([0, 20], [0, 0]))
    assert taken.ended


def test_lines_that_are_put_aside_keep_nobody_else_out(tmp_path: Path) -> None:
    """They have been in an engine that died, say, and go last; an engine that is full of them in
    the books would get no others before."""
    requests = [long_answer(i) for i in range(60)]
    planner = planner_over(tmp_path, requests, 2, kv_slots=200)
    got: list[int] = []
    aside: list[int] = []
    while not (
        taken := planner.take("job", 64, News([], [], True, aside), Rooms([60] * 2, [0] * 2))
    ).ended:
        aside = [place.line for place in taken.places]
        assert aside
        got += aside
    assert sorted(got) == [*range(1, 61)]


def test_an_engine_that_came_back_gets_lines_again(tmp_path: Path) -> None:
    """What it had, others were given; the planner is told only that it has lost it."""
    requests = [long_answer(i) for i in range(60)]
    planner = planner_over(tmp_path, requests, 2)
    first = planner.take("job", 64, News([], [], True), Rooms([50, 0], [0, 0]))
    assert planner._dispatcher.windows._windows[0].tokens > 0
    again = planner.take("job", 64, News([], [], True), Rooms([50, 0], [1, 0]))
    assert again.engine == first.engine == 0
    held_now = planner._dispatcher.windows._windows[0]
    assert sum(held_now.sides.values()) <= len(again.places)
