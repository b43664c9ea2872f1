"""A disk that takes no data: batches wait, say so, and go on by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from fault_places import AFTER, GOOD, INPUT, Place, check, engine_for
from openai.types import Batch
from scripted import ScriptedEngine, Service, line, serve

from sglang.srt.blendserve.store import disk, journal

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]


class FullDisk:
    """Makes every write of the store fail as on a full disk, while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        for module, name in ((journal.os, "pwrite"), (disk.os, "fsync")):
            monkeypatch.setattr(module, name, self._wrap(getattr(module, name)))
        commit = aiosqlite.Connection.commit

        async def commit_if_there_is_room(connection: aiosqlite.Connection) -> None:
            if self.full:
                raise sqlite3.OperationalError("database or disk is full")
            await commit(connection)

        monkeypatch.setattr(aiosqlite.Connection, "commit", commit_if_there_is_room)

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
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while stream.write(bytes(4096)):
                pass
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
