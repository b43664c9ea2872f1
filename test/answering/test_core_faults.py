"""Faults in the core that answers lines: each shows in the same way under `run` and the server.

    pytest test/answering

However a line or the whole job fails, each line of the input ends with exactly one result, and no
line is condemned for what befell the engine or the disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from both_ways import GOOD, OUTCOMES, ByRun, Way
from scripted import ScriptedEngine

from sglang.srt.blendserve.answering import line_answers, loop
from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.batch_file import validation
from sglang.srt.blendserve.batch_file.line_check import CheckedLine, Rules
from sglang.srt.blendserve.batch_file.lines import RawLine
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.store.line_result import LineResult

pytestmark = pytest.mark.anyio

BAD = GOOD[6]


def engine_that(script: Any = None) -> ScriptedEngine:
    engine = ScriptedEngine(refused=frozenset({"refused"}))
    if script is not None:
        engine.script = script
    return engine


@pytest.fixture
def quick_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "DOUBT_SECONDS", 0.05)
    monkeypatch.setattr(line_answers, "PAUSE_SECONDS", 0.02)


async def test_every_line_has_its_result(way: Way) -> None:
    engine = engine_that()
    await way.answer(engine)
    assert await way.outcomes() == OUTCOMES
    assert engine.executed == Counter([*GOOD, "refused"])
    assert engine.most_at_once <= 4


@pytest.mark.usefixtures("quick_doubt")
async def test_an_exception_is_the_result_of_its_line(way: Way) -> None:
    async def raises(line: BatchLine) -> None:
        if line.custom_id == BAD:
            raise RuntimeError("a fault in the engine")

    await way.answer(engine_that(raises))
    assert await way.outcomes() == OUTCOMES | {key: 500 for key in OUTCOMES if key[0] == BAD}
    [failed] = [one for one in await way.results() if one["custom_id"] == BAD]
    error = failed["response"]["body"]["error"]
    assert error["message"] == "Line 11: an error while it was executed: a fault in the engine"
    assert error["line"] == 11


@pytest.mark.usefixtures("quick_doubt")
async def test_an_answer_that_cannot_be_written_is_an_error_of_its_line(way: Way) -> None:
    """Half a surrogate pair, which a model may write in the arguments of a tool call."""

    class Half(ScriptedEngine):
        async def execute(
            self, line: BatchLine, rid: str, prompts: Any = None, engine: int | None = None
        ) -> Answer:
            found = await super().execute(line, rid, prompts)
            if line.custom_id == BAD:
                found.response.body["text"] = "\ud800"
            return found

    await way.answer(Half(refused=frozenset({"refused"})))
    assert await way.outcomes() == OUTCOMES | {key: 500 for key in OUTCOMES if key[0] == BAD}


@pytest.mark.usefixtures("quick_doubt")
async def test_an_aborted_request_is_tried_three_times(way: Way) -> None:
    engine = engine_that()

    async def aborts_twice(line: BatchLine) -> None:
        if line.custom_id == BAD and engine.executed[BAD] < 3:
            raise asyncio.CancelledError

    engine.script = aborts_twice
    await way.answer(engine)
    assert await way.outcomes() == OUTCOMES
    assert engine.executed[BAD] == 3


async def test_a_job_that_stops_does_not_try_again(way: Way) -> None:
    """It stops while a request waits for its next try, which the next start answers."""

    async def aborts(line: BatchLine) -> None:
        if line.custom_id == BAD:
            raise asyncio.CancelledError

    engine = engine_that(aborts)
    await way.answer(engine, until=lambda: engine.executed[BAD] == 1)
    assert engine.executed[BAD] == 1
    again = engine_that()
    await way.answer(again)
    assert await way.outcomes() == OUTCOMES
    assert again.executed[BAD] == 1


@pytest.mark.usefixtures("quick_doubt")
async def test_a_request_that_is_always_aborted_fails(way: Way) -> None:
    async def aborts(line: BatchLine) -> None:
        if line.custom_id == BAD:
            raise asyncio.CancelledError

    engine = engine_that(aborts)
    await way.answer(engine)
    assert await way.outcomes() == OUTCOMES | {key: 503 for key in OUTCOMES if key[0] == BAD}
    assert engine.executed[BAD] == 3


async def test_a_log_that_is_not_synced_once_is_synced_again(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, calls = way.log.sync, 0

    def fails_once(log: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(log)

    monkeypatch.setattr(way.log, "sync", fails_once)
    engine = engine_that()
    await way.answer(engine)
    assert calls > 1
    assert await way.outcomes() == OUTCOMES
    assert set(engine.executed.values()) == {1}


async def test_a_log_that_takes_no_more_ends_the_job_and_the_next_start_goes_on(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = way.log.append
    taken: list[int] = []

    def takes_four(log: Any, results: Sequence[LineResult]) -> None:
        if len(taken) == 4:
            raise RuntimeError("the log is broken")
        append(log, results)
        taken.extend(result.line for result in results)

    monkeypatch.setattr(way.log, "append", takes_four)
    first = engine_that()
    if isinstance(way, ByRun):
        with pytest.raises(RuntimeError, match="the log is broken"):
            await way.answer(first)
    else:  # the batch says that it is broken; the next start of the server tries again
        await way.answer(first, until=lambda: len(taken) == 4)
    monkeypatch.undo()
    again = engine_that()
    await way.answer(again)
    assert await way.outcomes() == OUTCOMES
    valid = {line: name for (name, line), status in OUTCOMES.items() if isinstance(status, int)}
    assert set(again.executed) == {name for line, name in valid.items() if line not in taken}


async def test_what_was_given_up_when_the_job_stopped_is_answered_by_the_next_start(
    way: Way,
) -> None:
    async def answers_three(line: BatchLine) -> None:
        if line.custom_id not in GOOD[:3]:
            await asyncio.sleep(1000)

    engine = engine_that(answers_three)
    await way.answer(engine, until=lambda: len(engine._running) == 4)
    again = engine_that()
    await way.answer(again)
    assert await way.outcomes() == OUTCOMES
    assert again.executed == Counter([*GOOD[3:], "refused"])


async def test_errors_of_an_engine_that_dies_are_no_results(way: Way) -> None:
    """Its requests raise before anybody has noticed that it is dead."""
    failed = 0

    async def dies(line: BatchLine) -> None:
        nonlocal failed
        if line.custom_id not in GOOD[:3]:
            failed += 1
            raise ConnectionError("the engine is gone")

    await way.answer(engine_that(dies), until=lambda: failed > 0)
    again = engine_that()
    await way.answer(again)
    assert await way.outcomes() == OUTCOMES
    assert again.executed == Counter([*GOOD[3:], "refused"])


async def test_the_input_is_parsed_at_most_twice_by_one_process(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: Counter[int] = Counter()
    check = validation.check_line

    def counted(raw: RawLine, rules: Rules) -> CheckedLine:
        parsed[raw.number] += 1
        return check(raw, rules)

    monkeypatch.setattr(validation, "check_line", counted)
    lines = {number for _, number in OUTCOMES}

    async def hangs(line: BatchLine) -> None:
        if line.custom_id not in GOOD[:3]:
            await asyncio.sleep(1000)

    engine = engine_that(hangs)
    await way.answer(engine, until=lambda: len(engine._running) == 4)
    assert parsed == Counter(dict.fromkeys(lines, 2))
    parsed.clear()
    await way.answer(engine_that())  # goes on with what the other has left
    assert set(parsed) == lines
    assert max(parsed.values()) <= 2
