"""The fault table: every fault at every place in a batch's life.

A place is a breakpoint the batch is held at; a fault strikes there; then the batch is let go.
However it ends, every line of the input has exactly one line in one of the two files, and a line
that was answered has the same answer as in an undisturbed run.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from fault_places import AFTER, GOOD, INPUT, TOTAL, Place, check, engine_for
from scripted import ScriptedEngine, jsonl, line, serve

from sglang.srt.blendserve.batch_file import validation
from sglang.srt.blendserve.batch_file.line_check import CheckedLine, Rules
from sglang.srt.blendserve.batch_file.lines import RawLine
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.server import runner
from sglang.srt.blendserve.store import file_table
from sglang.srt.blendserve.store.journal import ResultJournal

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]


async def test_bad_lines_only(directory: Path, undisturbed: dict[str, Any], place: Place) -> None:
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        place.let_go.set()
        batch = await service.finish(batch.id)
        assert batch.status == "completed"
        assert await check(service, batch, undisturbed) == set(GOOD)
        _, errors = await service.result_lines(batch)
        codes = [(one["error"] or {}).get("code", one["response"] and
                 one["response"]["status_code"]) for one in errors]  # fmt: skip
        assert codes == ["invalid_json_line", 400, 500, "url_mismatch"]


async def test_cancel(directory: Path, undisturbed: dict[str, Any], place: Place) -> None:
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        assert (await service.client.batches.cancel(batch.id)).status == "cancelling"
        if place.name != "in progress":  # there, requests that hang are given up
            place.let_go.set()
        batch = await service.finish(batch.id)
        assert batch.status == "cancelled"
        assert batch.cancelling_at <= batch.cancelled_at
        answered = await check(service, batch, undisturbed)
        if place.name == "validating":
            assert answered == set()
        elif place.name == "in progress":
            assert answered == set(GOOD[:AFTER])
        else:
            assert answered == set(GOOD)


async def test_expire(
    directory: Path,
    undisturbed: dict[str, Any],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        monkeypatch.setattr(runner, "now", lambda: batch.expires_at)
        await asyncio.sleep(2 * runner.TICK_SECONDS)
        if place.name != "in progress":
            place.let_go.set()
        batch = await service.finish(batch.id)
        answered = await check(service, batch, undisturbed)
        if place.name == "finalizing":  # everything was answered in time
            assert batch.status == "completed"
            assert answered == set(GOOD)
            return
        assert batch.status == "expired"
        assert batch.expired_at is not None
        assert answered == (set() if place.name == "validating" else set(GOOD[:AFTER]))
        _, errors = await service.result_lines(batch)
        expired = [one for one in errors if (one["error"] or {}).get("code") == "batch_expired"]
        assert {one["custom_id"] for one in expired} >= set(GOOD) - answered


async def test_crash_and_restart(
    directory: Path, tmp_path: Path, undisturbed: dict[str, Any], place: Place
) -> None:
    """The directory as a SIGKILL at the breakpoint leaves it, adopted by the next server."""
    crashed = tmp_path / "crashed"
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        shutil.copytree(directory, crashed)
        place.let_go.set()
    synced = results_in(crashed / "batches" / batch.id / "results.journal")
    again = engine_for(Place("nowhere"))
    async with serve(crashed, again) as service:
        batch = await service.finish(batch.id)
        assert batch.status == "completed"
        assert await check(service, batch, undisturbed) == set(GOOD)
    assert set(again.executed) == {*GOOD, "refused", "breaks"} - synced
    assert (
        len(synced) == {"validating": 0, "in progress": AFTER + 3, "finalizing": TOTAL}[place.name]
    )


def results_in(path: Path) -> set[str | None]:
    """Return the custom_ids of the lines that have a result in a journal."""
    results = ResultJournal(path)
    return {orjson.loads(result.data)["custom_id"] for result in results.results()}


async def test_a_batch_that_ends_early_has_its_input_parsed_twice(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines without an answer are those that answering has left, not found by reading again."""
    parsed: Counter[int] = Counter()
    check_line = validation.check_line

    def counted(raw: RawLine, rules: Rules) -> CheckedLine:
        parsed[raw.number] += 1
        return check_line(raw, rules)

    monkeypatch.setattr(validation, "check_line", counted)
    place = Place("in progress")
    async with serve(directory, engine_for(place), max_in_flight=4) as service:
        lines = INPUT + jsonl([line(f"later-{n}") for n in range(300)])
        batch = await service.submit(lines)
        while place.answered <= AFTER:
            await asyncio.sleep(0.01)
        await service.client.batches.cancel(batch.id)
        batch = await service.finish(batch.id)
        assert batch.status == "cancelled"
        output, errors = await service.result_lines(batch)
    assert len(output) + len(errors) == TOTAL + 300 == len(parsed)
    assert len({one["id"] for one in output + errors}) == TOTAL + 300
    assert errors[-1]["custom_id"] == "later-299"
    assert set(parsed.values()) == {2}


async def test_crash_while_cancelling(
    directory: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    place, crashed = Place("in progress"), tmp_path / "crashed"
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        service.runner.cancel = lambda batch_id: None  # the crash comes first
        await service.client.batches.cancel(batch.id)
        shutil.copytree(directory, crashed)
    async with serve(crashed, engine := engine_for(Place("nowhere"))) as service:
        batch = await service.finish(batch.id)
        assert batch.status == "cancelled"
        assert await check(service, batch, undisturbed) == set(GOOD[:AFTER])
    assert not engine.executed


async def test_server_stops_and_is_back(
    directory: Path, undisturbed: dict[str, Any], place: Place
) -> None:
    """As SIGTERM does it: requests in the engine are given up, nothing else is lost."""
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        service.engine.stopping = True
        await asyncio.sleep(2 * runner.TICK_SECONDS)
        if place.name != "in progress":
            place.let_go.set()
    async with serve(directory, engine_for(Place("nowhere"))) as service:
        batch = await service.finish(batch.id)
        assert batch.status == "completed"
        assert await check(service, batch, undisturbed) == set(GOOD)


async def test_a_start_that_fails_leaves_no_thread_and_no_lock(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Any) -> list[str]:
        raise sqlite3.OperationalError("disk I/O error")

    before = set(threading.enumerate())
    with monkeypatch.context() as broken:
        broken.setattr(file_table, "states", fail)
        with pytest.raises(sqlite3.OperationalError):
            await serve(directory).__aenter__()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()
    async with serve(directory) as service:
        assert (await service.http.get("/v1/batches")).status_code == 200


async def test_input_removed_from_outside(directory: Path, tmp_path: Path) -> None:
    """Someone deleted the batch's own link while the server was down."""
    place, crashed = Place("in progress"), tmp_path / "crashed"
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        shutil.copytree(directory, crashed)
    (crashed / "batches" / batch.id / "input.jsonl").unlink()
    async with serve(crashed) as service:
        batch = await service.finish(batch.id)
        assert batch.status == "failed"
        assert "unreadable_file" in {error.code for error in batch.errors.data}
        counts = batch.request_counts
        assert (counts.completed, counts.completed + counts.failed) == (AFTER, TOTAL)
        output, _ = await service.result_lines(batch)
        assert [one["custom_id"] for one in output] == GOOD[:AFTER]


async def test_whole_workspace_removed_from_outside(directory: Path, tmp_path: Path) -> None:
    place, crashed = Place("in progress"), tmp_path / "crashed"
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        shutil.copytree(directory, crashed)
    shutil.rmtree(crashed / "batches" / batch.id)
    async with serve(crashed) as service:
        batch = await service.finish(batch.id)
        assert batch.status == "failed"
        counts = batch.request_counts
        assert (counts.completed, counts.failed, counts.total) == (0, TOTAL, TOTAL)


async def test_requests_aborted_by_someone_else_are_tried_again(directory: Path) -> None:
    engine = ScriptedEngine()

    async def first_try_is_aborted(request: BatchLine) -> None:
        if engine.executed[request.custom_id] == 1:
            raise asyncio.CancelledError

    engine.script = first_try_is_aborted
    async with serve(directory, engine) as service:
        batch = await service.finish((await service.submit([line("a"), line("b")])).id)
        assert batch.request_counts.completed == 2
        assert engine.executed == {"a": 2, "b": 2}


async def test_many_batches_at_once(directory: Path) -> None:
    async def slow(request: BatchLine) -> None:
        await asyncio.sleep(0.001)

    engine = ScriptedEngine(slow)
    async with serve(directory, engine, max_in_flight=16) as service:
        made = [
            await service.submit(
                [line(f"{b}-{n}") for n in range(100)], completion_window=f"{b + 1}h"
            )
            for b in range(6)
        ]
        for batch in made:
            done = await service.finish(batch.id)
            assert done.request_counts.completed == 100
        assert engine.most_at_once <= 16
        assert set(engine.executed.values()) == {1}
        assert service.runner._pool.in_flight == 0
