"""Several engines as one: who answers what, and what becomes of a line whose engine goes.

pytest test/engines/test_engine_pool.py
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from linked_engines import Engines, LinkedEngine, run_over
from pools import COST
from scripted import Held, Script, jsonl, line

from sglang.srt.blendserve.answering.engine import EngineLost
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.engines.remote_engine import NotStarted
from sglang.srt.blendserve.job_ids import make_rid

pytestmark = pytest.mark.anyio

LINES = 60


def given(folder: Path, lines: int = LINES) -> set[str]:
    """Write the input; return the names of its lines."""
    names = [f"a-{n}" for n in range(lines)]
    (folder / "in.jsonl").write_bytes(jsonl([line(name) for name in names]))
    return {*names}


def results(path: Path) -> list[str]:
    return [orjson.loads(row)["custom_id"] for row in path.read_bytes().splitlines()]


def request(number: int = 1) -> tuple[BatchLine, str]:
    body = {"model": "scripted", "prompt": f"p{number}"}
    one = BatchLine(
        line=number, custom_id=f"a-{number}", method="POST", url=Endpoint.COMPLETIONS, body=body
    )
    return one, make_rid("job", 100, number)


async def test_every_line_is_answered_once_by_all_engines(tmp_path: Path) -> None:
    names = given(tmp_path)
    engines = Engines(3)
    await run_over(engines, tmp_path)
    assert sorted(results(tmp_path / "out.jsonl")) == sorted(names)
    assert set(engines.executed().values()) == {1}
    assert all(one.engine.executed for [one] in engines.made)


class Poison:
    """Kills the engine that a marked line is in, once others have come in beside it."""

    def __init__(self, marked: str, engine: LinkedEngine) -> None:
        self._marked, self._engine = marked, engine

    async def __call__(self, request: BatchLine) -> None:
        await asyncio.sleep(0.01)
        if request.custom_id == self._marked:
            self._engine.kill()
            await asyncio.Event().wait()


async def test_a_line_that_ends_engines_is_found_and_all_others_are_answered(
    tmp_path: Path,
) -> None:
    names = given(tmp_path)
    engines = Engines(3, lambda engine: Poison("a-17", engine))
    await run_over(engines, tmp_path)
    assert sorted(results(tmp_path / "out.jsonl")) == sorted(names - {"a-17"})
    [failed] = (tmp_path / "errors.jsonl").read_bytes().splitlines()
    assert orjson.loads(failed)["custom_id"] == "a-17"
    assert orjson.loads(failed)["error"]["code"] == "engine_died"
    assert engines.executed()["a-17"] <= 6  # 8 lines are in an engine: half of them each time


class OneDeath:
    """Kills its engine when it has so many lines."""

    def __init__(self, engine: LinkedEngine, lines: int) -> None:
        self._engine, self._lines, self._inside = engine, lines, 0

    async def __call__(self, request: BatchLine) -> None:
        self._inside += 1
        await asyncio.sleep(0.02)
        if self._inside >= self._lines:
            self._engine.kill()
            await asyncio.Event().wait()


async def test_an_engine_that_is_taken_away_puts_no_line_under_suspicion(tmp_path: Path) -> None:
    names = given(tmp_path)
    deaths = iter([4])

    def script(engine: LinkedEngine) -> Script:
        return OneDeath(engine, next(deaths, 1 << 30))

    engines = Engines(2, script)
    log = await run_over(engines, tmp_path)
    assert sorted(results(tmp_path / "out.jsonl")) == sorted(names)
    assert not log.engine_record.exists()  # nobody is under suspicion
    assert [len(of_number) for of_number in engines.made] == [2, 1]
    assert any("Engine 0 died with" in said for said in engines.said)
    assert sum(standing.answered for standing in engines.pool.standings()) == LINES


async def test_the_job_goes_on_with_those_that_start(tmp_path: Path) -> None:
    names = given(tmp_path)
    faults = {1: "no start", 2: "no process"}
    engines = Engines(3, fault=lambda number, start: faults.get(number))
    await run_over(engines, tmp_path)
    assert sorted(results(tmp_path / "out.jsonl")) == sorted(names)
    assert len([said for said in engines.said if "does not start" in said]) == 2


async def test_a_second_try_may_start(tmp_path: Path) -> None:
    engines = Engines(1, fault=lambda number, start: "no start" if start == 0 else None)
    await engines.pool.begin()
    assert engines.pool.standings()[0].there
    await engines.pool.close()


async def test_a_short_batch_waits_a_moment_for_all_engines() -> None:
    class Second(Engines):
        async def _start(self, number: int) -> LinkedEngine:
            await asyncio.sleep(0.02 * number)
            return await super()._start(number)

    engines = Second(3)
    await engines.pool.begin()
    assert [standing.there for standing in engines.pool.standings()] == [True] * 3
    await engines.pool.close()


async def test_where_none_starts_it_is_said_why() -> None:
    engines = Engines(2, fault=lambda number, start: "no start")
    with pytest.raises(NotStarted, match=r"^no memory is left$"):
        await engines.pool.begin()
    await engines.pool.close()
    assert all(one.closed for of_number in engines.made for one in of_number)


async def test_an_engine_that_comes_late_gets_lines(tmp_path: Path) -> None:
    names = given(tmp_path)
    late = asyncio.Event()
    gates: list[Held] = []

    class Late(Engines):
        async def _start(self, number: int) -> LinkedEngine:
            if number == 1:
                await late.wait()
            return await super()._start(number)

    def script(engine: LinkedEngine) -> Script:
        gates.append(Held())
        return gates[-1]

    engines = Late(2, script)
    running = asyncio.create_task(run_over(engines, tmp_path))
    while not gates or len(gates[0].came) < 8:  # a window's worth is in it, and as many wait
        await asyncio.sleep(0.01)
    late.set()
    while len(gates) < 2:
        await asyncio.sleep(0.01)
    for gate in gates:
        gate.let_end(LINES)
    await running
    assert sorted(results(tmp_path / "out.jsonl")) == sorted(names)
    assert gates[1].came


async def test_an_engine_that_answers_no_question_counts_as_dead(tmp_path: Path) -> None:
    names = given(tmp_path)

    def script(engine: LinkedEngine) -> Script:
        async def never(_: BatchLine) -> None:
            if engine.fault == "mute":
                await asyncio.Event().wait()

        return never

    engines = Engines(
        2,
        script,
        fault=lambda number, start: "mute" if (number, start) == (0, 0) else None,
        watchdog_seconds=0.1,
    )
    await run_over(engines, tmp_path)
    assert sorted(results(tmp_path / "out.jsonl")) == sorted(names)


async def test_without_any_engine_the_job_stops(tmp_path: Path) -> None:
    given(tmp_path)
    engines = Engines(1, lambda engine: OneDeath(engine, 1), restarts=0)
    log = await run_over(engines, tmp_path)
    assert not results(tmp_path / "out.jsonl")
    assert engines.pool.ended
    assert not log.engine_record.exists()  # and nobody is to blame


async def test_who_waits_for_an_answer_is_told_how_many_lines_were_in_the_engine() -> None:
    gate = Held()
    engines = Engines(1, lambda engine: gate, restarts=0)
    await engines.pool.begin()
    waiting = [asyncio.create_task(engines.pool.execute(*request(n))) for n in range(1, 4)]
    while len(gate.came) < 3:
        await asyncio.sleep(0.01)
    engines.made[0][0].kill()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [error.lines for error in found if isinstance(error, EngineLost)] == [3, 3, 3]
    await engines.pool.close()


async def test_a_line_goes_to_the_engine_that_it_is_for_if_that_is_there() -> None:
    engines = Engines(2, restarts=0)
    await engines.pool.begin()
    while not all(standing.there for standing in engines.pool.standings()):
        await asyncio.sleep(0.01)
    for number in range(1, 6):
        await engines.pool.execute(*request(number), engine=1)
    assert [len(one.engine.executed) for [one] in engines.made] == [0, 5]
    engines.made[1][0].kill()
    while engines.pool.standings()[1].there:
        await asyncio.sleep(0.01)
    await engines.pool.execute(*request(6), engine=1)
    assert [len(one.engine.executed) for [one] in engines.made] == [1, 5]
    await engines.pool.close()


async def test_more_lines_than_there_is_room_for_are_answered_one_after_another() -> None:
    engines = Engines(2, restarts=0, window=2)
    await engines.pool.begin()
    ending = asyncio.create_task(engines.pool.until_ended(Stop()))  # it waits for engines, too
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await asyncio.gather(*(engines.pool.execute(*request(n)) for n in range(1, 60)))
    assert all(one.engine.most_at_once <= 2 for [one] in engines.made)
    ending.cancel()
    await engines.pool.close()


async def test_a_job_is_given_up_in_all_engines() -> None:
    gate = Held()
    engines = Engines(2, lambda engine: gate)
    await engines.pool.begin()
    while not all(standing.there for standing in engines.pool.standings()):
        await asyncio.sleep(0.01)
    waiting = [
        asyncio.create_task(engines.pool.execute(*request(n), engine=n % 2)) for n in range(1, 5)
    ]
    while len(gate.came) < 4:
        await asyncio.sleep(0.01)
    engines.pool.abort("job")
    found = await asyncio.gather(*waiting)
    assert [answer.observation.aborted for answer in found] == ["aborted"] * 4
    await engines.pool.close()


async def test_an_error_in_an_engine_is_that_of_the_line() -> None:
    async def fails(_: BatchLine) -> None:
        raise RuntimeError("no more")

    engines = Engines(1, lambda engine: fails)
    await engines.pool.begin()
    with pytest.raises(RuntimeError, match=r"^no more$"):
        await engines.pool.execute(*request())
    await engines.pool.close()


async def test_a_line_that_nobody_waits_for_is_given_up_where_it_is() -> None:
    gate = Held()
    engines = Engines(1, lambda engine: gate)
    await engines.pool.begin()
    waiting = asyncio.create_task(engines.pool.execute(*request()))
    while not gate.came:
        await asyncio.sleep(0.01)
    waiting.cancel()
    [[engine]] = engines.made
    while engine.engine._running:
        await asyncio.sleep(0.01)
    await engines.pool.close()


async def test_facts_come_from_an_engine_that_lives() -> None:
    engines = Engines(2, restarts=0)
    await engines.pool.begin()
    while not all(standing.there for standing in engines.pool.standings()):
        await asyncio.sleep(0.01)
    [[first], [_]] = engines.made

    async def dies() -> Any:
        first.kill()
        await asyncio.Event().wait()

    first.facts = dies  # type: ignore[method-assign]
    assert (await engines.pool.planner_settings(Stop(), None)).kv_slots == 4000
    await engines.pool.close()


async def test_each_engine_has_deaths_of_its_own(tmp_path: Path) -> None:
    """A machine with several engines goes: all of them are started again."""
    names = given(tmp_path)
    deaths = iter([3, 3, 3])

    def script(engine: LinkedEngine) -> Script:
        return OneDeath(engine, next(deaths, 1 << 30))

    engines = Engines(3, script, restarts=1)
    await run_over(engines, tmp_path)
    assert sorted(results(tmp_path / "out.jsonl")) == sorted(names)
    assert [len(of_number) for of_number in engines.made] == [2, 2, 2]


async def test_plans_are_made_for_all_engines_which_share_what_waits() -> None:
    engines = Engines(2)
    await engines.pool.begin()
    while not all(standing.there for standing in engines.pool.standings()):
        await asyncio.sleep(0.01)
    settings = await engines.pool.planner_settings(Stop(), None)
    assert (settings.engines, settings.kv_slots, settings.most_tokens) == (2, 4000, 4096)
    assert settings.cost == COST
    await engines.pool.tell_beyond(RemainingWork(4.0, 6.0))
    assert [one.told for [one] in engines.made] == [[RemainingWork(2.0, 3.0)]] * 2
    states: Any = await engines.pool.states()
    assert len(states) == 2
    await engines.pool.close()
