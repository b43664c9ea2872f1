"""An input that is changed or cut under an open batch: it stops, and the counts add up."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_places import AFTER, GOOD, INPUT, TOTAL, Place, engine_for
from openai.types import Batch
from scripted import ScriptedEngine, Service, jsonl, line, serve

from sglang.srt.blendserve.store.journal import ResultJournal

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]

CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "cut within what was answered": lambda data: data[:150],
    "empty": lambda data: b"",
    "lines more": lambda data: data + jsonl([line(f"more-{n}") for n in range(20)]),
    "lines in front": lambda data: jsonl([line(f"more-{n}") for n in range(20)]) + data,
    "one line another": lambda data: data.replace(b"prompt good-8", b"tpmorp good-8"),
}


def change(directory: Path, batch: Batch, how: str) -> None:
    path = directory / "batches" / batch.id / "input.jsonl"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(CHANGES[how](data))


async def watched(service: Service, batch: Batch) -> Batch:
    """Wait for the end; see that the counts never exceed the total."""
    while True:
        seen = await service.client.batches.retrieve(batch.id)
        counts = seen.request_counts
        assert counts.completed + counts.failed <= counts.total
        if seen.status in ("completed", "failed", "expired", "cancelled"):
            assert counts.completed + counts.failed == counts.total
            return seen


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("held", ["in progress", "finalizing"])
@pytest.mark.parametrize("noted", [True, False])
async def test_changed_while_the_server_was_down(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    held: str,
    noted: bool,
) -> None:
    if not noted and how == "one line another":
        pytest.skip("an older version noted nothing that tells")
    place, crashed = Place(held), tmp_path / "crashed"
    with monkeypatch.context() as patched:
        place.install(patched)
        async with serve(directory, engine_for(place)) as service:
            batch = await service.submit(INPUT)
            await place.wait(service, batch)
            shutil.copytree(directory, crashed)
            place.let_go.set()
    change(crashed, batch, how)
    if not noted:
        (crashed / "batches" / batch.id / "input.digest").unlink()
    done = ResultJournal(crashed / "batches" / batch.id / "results.journal")
    engine = ScriptedEngine()
    async with serve(crashed, engine) as service:
        ended = await watched(service, batch)
        output, errors = await service.result_lines(ended)
        assert len(output) == done.tally.completed
        assert {one["custom_id"] for one in output} >= set(GOOD[:AFTER])
        if held == "finalizing":  # every line had its answer
            assert (ended.status, len(output) + len(errors)) == ("completed", TOTAL)
            return
        assert ended.status == "failed"
        assert "input_changed" in {error.code for error in ended.errors.data}
        assert len(errors) == done.tally.failed
        assert ended.request_counts.total == TOTAL
    assert not engine.executed  # not one of the changed lines was answered


async def test_changed_while_its_lines_are_read(directory: Path) -> None:
    place = Place("in progress")
    lines = jsonl([line(name) for name in GOOD]) + jsonl(
        [line(f"later-{n}", "x" * 5000) for n in range(200)]
    )
    async with serve(directory, engine_for(place), max_in_flight=4) as service:
        batch = await service.submit(lines)
        while place.answered <= AFTER:
            await service.client.batches.retrieve(batch.id)
        path = directory / "batches" / batch.id / "input.jsonl"
        path.write_bytes(path.read_bytes().replace(b"later-1", b"laber-1"))
        place.let_go.set()
        ended = await watched(service, batch)
        assert ended.status == "failed"
        assert ended.request_counts.total == len(GOOD) + 200
        output, _ = await service.result_lines(ended)
        assert {one["custom_id"] for one in output} >= set(GOOD)


async def test_cut_and_the_database_has_forgotten_that_it_was_validated(
    directory: Path, tmp_path: Path
) -> None:
    place, crashed = Place("in progress"), tmp_path / "crashed"
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        shutil.copytree(directory, crashed)
    with sqlite3.connect(crashed / "blendserve.db") as db:
        db.execute("UPDATE batches SET status = 'validating', total = 0, completed = 0, failed = 0")
    db.close()
    change(crashed, batch, "cut within what was answered")
    done = ResultJournal(crashed / "batches" / batch.id / "results.journal")
    async with serve(crashed, ScriptedEngine()) as service:
        ended = await watched(service, batch)
        assert ended.status == "failed"
        output, errors = await service.result_lines(ended)
        assert (len(output), len(errors)) == (done.tally.completed, done.tally.failed)
