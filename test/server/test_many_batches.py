"""Many open batches and few file descriptors: bounded use, and waiting when there are none."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_places import AFTER, GOOD, INPUT, Place, engine_for
from scripted import ScriptedEngine, line, serve

from sglang.srt.blendserve.answering import line_source
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.server import batch_run, finalizing

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def no_more_files() -> Iterator[None]:
    """As when the process has as many files open as it may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    spare = []
    try:
        while True:
            fd = os.open("/dev/null", os.O_RDONLY)
            spare.append(fd)
            if fd > highest:
                break
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in spare:
            os.close(fd)


async def test_open_batches_hold_no_files(directory: Path) -> None:
    go = asyncio.Event()
    started = 0

    async def wait(_: BatchLine) -> None:
        nonlocal started
        started += 1
        if started > 1:
            await go.wait()

    async with serve(directory, ScriptedEngine(wait)) as service:
        first = await service.finish((await service.submit([line("x")])).id)
        assert first.status == "completed"
        before = open_files()
        made = [await service.submit([line(f"{b}-{n}") for n in range(3)]) for b in range(40)]
        while started < 1 + 40 * 3:
            await asyncio.sleep(0.02)
        assert open_files() <= before + 8  # some are being validated, whatever their number
        go.set()
        for batch in made:
            assert (await service.finish(batch.id)).status == "completed"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_running_out_of_files_is_waited_out(directory: Path, cancelled: bool) -> None:
    place = Place("in progress")
    async with serve(directory, engine_for(place)) as service:
        later = [await service.submit(INPUT)]
        await place.wait(service, later[0])
        with no_more_files():
            with pytest.raises(OSError, match="Too many open files"):
                os.open("/dev/null", os.O_RDONLY)
            place.let_go.set()
            later[0] = await service.client.batches.retrieve(later[0].id)
            if cancelled:
                await service.client.batches.cancel(later[0].id)
            for _ in range(200):
                shown = await service.client.batches.retrieve(later[0].id)
                if shown.errors and shown.errors.data[0].code == "storage_unavailable":
                    break
                await asyncio.sleep(0.02)
            assert shown.errors.data[0].code == "storage_unavailable"
            assert shown.status == ("cancelling" if cancelled else "in_progress")
            answer = await service.http.post(
                "/v1/files", files={"file": ("x", b"x")}, data={"purpose": "batch"}
            )
            assert answer.status_code == 507
        ended = await service.finish(later[0].id)
        assert ended.status == ("cancelled" if cancelled else "completed")
        output, _ = await service.result_lines(ended)
        assert {one["custom_id"] for one in output} >= set(GOOD[:AFTER])


@pytest.mark.parametrize("before", [True, False])
async def test_no_batch_stays_in_cancelling(
    directory: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """An error that nobody has thought of, before a batch is cancelled or at its end."""
    place = Place("in progress")

    def breaks(*_: object) -> None:
        raise RuntimeError("nobody has thought of this")

    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT)
        await place.wait(service, batch)
        monkeypatch.setattr(finalizing, "write_results", breaks)
        if before:
            place.let_go.set()
            while not (shown := await service.client.batches.retrieve(batch.id)).errors or (
                shown.errors.data[0].code != "server_error"
            ):
                await asyncio.sleep(0.02)
        await service.client.batches.cancel(batch.id)
        ended = await service.finish(batch.id)
        assert ended.status == "cancelled"
        counts = ended.request_counts
        assert counts.completed + counts.failed == counts.total
        assert (
            "lost+found"
            in {error.code: error.message for error in ended.errors.data}["server_error"]
        )
        assert (directory / "lost+found" / batch.id / "results.journal").stat().st_size


async def test_a_small_batch_is_not_validated_behind_a_large_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place("validating")
    place.install(monkeypatch)
    held = batch_run.scan

    def only_large(lines: Any, **options: Any) -> Any:
        seen = list(lines)
        return (held if len(seen) > 1 else line_source.scan)(iter(seen), **options)

    monkeypatch.setattr(batch_run, "scan", only_large)
    async with serve(directory) as service:
        large = await service.submit([line(f"l{n}", "x" * 10_000) for n in range(200)])
        await place.wait(service, large)
        small = await service.submit([line("small")])
        assert (await service.finish(small.id)).status == "completed"
        assert (await service.client.batches.retrieve(large.id)).status == "validating"
        place.let_go.set()
        assert (await service.finish(large.id)).status == "completed"
