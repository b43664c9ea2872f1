"""The fault table: every fault at every place in a batch's life.

A place is a breakpoint the batch is held at; a fault strikes there; then the batch is let go.
However it ends, every line of the input has exactly one line in one of the two files, and a line
that was answered has the same answer as in an undisturbed run.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai.types import Batch
from scripted import ScriptedEngine, Service, jsonl, line, serve

from sglang.srt.blendserve.batch import content, database, journal, patience, run, runner
from sglang.srt.blendserve.batch.journal import ResultJournal
from sglang.srt.blendserve.batch.protocol import BatchLine

pytestmark = pytest.mark.anyio

AFTER = 3
"""Requests answered when a batch is held in progress."""

GOOD = [f"good-{n}" for n in range(9)]
INPUT = (
    jsonl([line(name, f"prompt {name}\nüñí\u2028") for name in GOOD[:4]])
    + b"\n{not JSON\r\n"
    + jsonl([line("refused"), line("breaks"), line("elsewhere", url="/v1/embeddings")])
    + jsonl([line(name, f"prompt {name}") for name in GOOD[4:]])
)
TOTAL = len(GOOD) + 4
BAD = {"refused", "breaks", "elsewhere", None}


@dataclass
class Place:
    """A breakpoint: `reached` is set when the batch is there, which waits for `let_go`."""

    name: str
    reached: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    answered: int = 0

    def hold(self) -> None:
        self.reached.set()
        assert self.let_go.wait(30)

    async def script(self, request: BatchLine) -> None:
        """Answer `AFTER` requests; the others wait, if this is the place."""
        if request.custom_id == "breaks":
            raise RuntimeError("a fault in the engine")
        self.answered += 1
        while self.name == "in progress" and self.answered > AFTER and not self.let_go.is_set():
            await asyncio.sleep(0.01)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hold the batch before it is validated, or before its files are written."""
        if self.name != "in progress":
            name = {"validating": "scan", "finalizing": "write_results"}[self.name]
            work: Callable[..., Any] = getattr(run, name)

            def held(*args: Any) -> Any:
                self.hold()
                return work(*args)

            monkeypatch.setattr(run, name, held)

    async def wait(self, service: Service, batch: Batch) -> None:
        """Wait until the batch is there, with what was answered synced."""
        if self.name != "in progress":
            assert await asyncio.to_thread(self.reached.wait, 30)
            return
        for _ in range(1500):
            batch = await service.client.batches.retrieve(batch.id)
            counts = batch.request_counts
            if (counts.completed, counts.failed) == (AFTER, len(BAD) - 1):  # "refused" waits
                return
            await asyncio.sleep(0.02)
        raise TimeoutError(batch)


@pytest.fixture(params=["validating", "in progress", "finalizing"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    held = Place(request.param)
    held.install(monkeypatch)
    return held


async def check(service: Service, batch: Batch, undisturbed: dict[str, Any]) -> set[str]:
    """Check what holds however a batch ended; return the custom_ids of the output file."""
    counts = batch.request_counts
    assert counts.completed + counts.failed == counts.total == TOTAL
    output, errors = await service.result_lines(batch)
    assert (len(output), len(errors)) == (counts.completed, counts.failed)
    assert sorted(map(str, [one["custom_id"] for one in output + errors])) == sorted(
        map(str, [*GOOD, *BAD])
    )
    assert len({one["id"] for one in output + errors}) == TOTAL
    for one in output:
        assert answer_of(one) == undisturbed[one["custom_id"]]
    assert not list((service.store._batches).iterdir())
    return {one["custom_id"] for one in output}


def answer_of(result: dict[str, Any]) -> bytes:
    """Return a result's bytes without what names the batch it is of."""
    response = {key: value for key, value in result["response"].items() if key != "request_id"}
    return orjson.dumps({**result, "id": None, "response": response})


@pytest.fixture
async def undisturbed(tmp_path: Path, anyio_backend: str) -> dict[str, Any]:
    engine = engine_for(Place("nowhere"))
    async with serve(tmp_path / "undisturbed", engine) as service:
        batch = await service.finish((await service.submit(INPUT)).id)
        output, _ = await service.result_lines(batch)
        assert [one["custom_id"] for one in output] == GOOD
        return {one["custom_id"]: answer_of(one) for one in output}


def engine_for(place: Place) -> ScriptedEngine:
    return ScriptedEngine(place.script, refused=frozenset({"refused"}))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.05)


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
    found = {orjson.loads(results.read(number).data)["custom_id"] for number in results.lines()}
    results.close()
    return found


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


class FullDisk:
    """Makes every write of the store fail as on a full disk, while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        for module, name in ((journal.os, "pwrite"), (content.os, "fsync")):
            monkeypatch.setattr(module, name, self._wrap(getattr(module, name)))
        commit = database._transact

        def transact(connection: sqlite3.Connection, change: Any) -> Any:
            if self.full:
                raise sqlite3.OperationalError("database or disk is full")
            return commit(connection, change)

        monkeypatch.setattr(database, "_transact", transact)

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any) -> Any:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args)

        return write


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(1500):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError


async def test_disk_full(
    directory: Path,
    undisturbed: dict[str, Any],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = FullDisk(monkeypatch)
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        disk.full = True
        place.let_go.set()

        async def says_so() -> bool:
            shown = await service.client.batches.retrieve(batch.id)
            assert shown.status in ("validating", "in_progress", "finalizing")
            data = shown.errors.data if shown.errors else []
            return bool(data) and data[0].code == "storage_unavailable"

        await until(says_so)
        assert (await service.http.get("/batches")).text.count("storage_unavailable") == 1
        disk.full = False
        batch = await service.finish(batch.id)
        assert batch.status == "completed"
        assert await check(service, batch, undisturbed) == set(GOOD)
        assert "storage_unavailable" not in {error.code for error in batch.errors.data}


async def test_server_stops_while_the_disk_is_full(
    directory: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, place = FullDisk(monkeypatch), Place("in progress")
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        disk.full = True
        place.let_go.set()
        await asyncio.sleep(1)
    disk.full = False
    async with serve(directory, engine_for(Place("nowhere"))) as service:
        batch = await service.finish(batch.id)
        assert await check(service, batch, undisturbed) == set(GOOD)


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    place = Place("in progress")
    filler = small_disk / "filler"
    async with serve(small_disk / "batch-api", ScriptedEngine(place.script)) as service:
        lines = [line(str(n), "x" * 1000) for n in range(400)]
        batch = await service.submit(lines)
        await until(lambda: answered(service, batch, AFTER))
        with filler.open("wb") as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
                stream.flush()
        place.let_go.set()
        await until(lambda: waits(service, batch))
        response = await service.http.post(
            "/v1/files",
            files={"file": ("x", b"x" * 100_000)},
            data={"purpose": "batch"},
        )
        assert response.status_code == 507
        filler.unlink()
        batch = await service.finish(batch.id)
        assert batch.request_counts.model_dump() == {"total": 400, "completed": 400, "failed": 0}
        output, _ = await service.result_lines(batch)
        assert [one["custom_id"] for one in output] == [str(n) for n in range(400)]
        assert batch.errors is None


async def answered(service: Service, batch: Batch, number: int) -> bool:
    return (await service.client.batches.retrieve(batch.id)).request_counts.completed >= number


async def waits(service: Service, batch: Batch) -> bool:
    shown = await service.client.batches.retrieve(batch.id)
    return bool(shown.errors) and shown.errors.data[0].code == "storage_unavailable"
