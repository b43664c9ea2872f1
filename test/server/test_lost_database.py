"""A database that is lost, old or cut, on a real SQLite: no result that a journal has is lost."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_places import AFTER, GOOD, INPUT, TOTAL, Place, engine_for
from openai.types import Batch
from scripted import ScriptedEngine, line, serve

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.store.journal import ResultJournal

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]


def zero_the_log(directory: Path) -> None:
    log = directory / "blendserve.db-wal"
    assert log.stat().st_size
    log.write_bytes(bytes(log.stat().st_size))


def cut_the_log(directory: Path) -> None:
    log = directory / "blendserve.db-wal"
    with log.open("rb+") as stream:
        stream.truncate(log.stat().st_size * 2 // 3)


def lose_the_database(directory: Path) -> None:
    for file in directory.glob("blendserve.db*"):
        file.unlink()


def empty_the_database(directory: Path) -> None:
    for file in directory.glob("blendserve.db*"):
        file.write_bytes(b"")


LOSSES: dict[str, Callable[[Path], None]] = {
    loss.__name__.replace("_", " "): loss
    for loss in (zero_the_log, cut_the_log, lose_the_database, empty_the_database)
}


async def crashed_in_progress(directory: Path, crashed: Path) -> Batch:
    """Run a batch until some of it is answered and synced; copy what a crash would leave."""
    place = Place("in progress")
    async with serve(directory, engine_for(place)) as service:
        batch = await service.submit(INPUT, metadata={"name": "mine"})
        await place.wait(service, batch)
        shutil.copytree(directory, crashed)
    return batch


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("about", [True, False])
async def test_results_are_put_aside_and_come_back(
    directory: Path,
    tmp_path: Path,
    loss: str,
    about: bool,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    crashed = tmp_path / "crashed"
    batch = await crashed_in_progress(directory, crashed)
    done = sorted(ResultJournal(crashed / "batches" / batch.id / "results.journal").lines())
    assert len(done) > AFTER
    if not about:  # as older versions leave it
        (crashed / "batches" / batch.id / "batch.json").unlink()
    LOSSES[loss](crashed)
    with caplog.at_level(logging.WARNING):
        async with serve(crashed) as service:
            known = [one.id async for one in service.client.batches.list()]
    aside = crashed / "lost+found" / batch.id
    if known:  # only its state is older than it was
        assert loss == "cut the log"
        assert not aside.exists()
    else:
        assert f"recover --batch-dir {crashed} {batch.id}" in caplog.text
        assert sorted(ResultJournal(aside / "results.journal").lines()) == done
        capsys.readouterr()
        assert await in_thread(["recover", "--batch-dir", str(crashed)]) == 0
        assert capsys.readouterr().out.startswith(batch.id)
        assert await in_thread(["recover", "--batch-dir", str(crashed), batch.id]) == 0
    engine = engine_for(Place("nowhere"))
    async with serve(crashed, engine) as service:
        finished = await service.finish(batch.id)
        assert finished.status == "completed"
        assert finished.request_counts.total == TOTAL
        output, errors = await service.result_lines(finished)
        assert sorted(one["custom_id"] for one in output) == GOOD
        assert len(output) + len(errors) == TOTAL
        assert not set(engine.executed) & set(GOOD[:AFTER])  # what was synced is not done again
        if about:
            assert finished.metadata == {"name": "mine"}
        assert (await service.client.files.retrieve(finished.input_file_id)).bytes == len(INPUT)


async def in_thread(argv: list[str]) -> int:
    return await asyncio.to_thread(cli.main, argv)


async def test_a_batch_that_has_ended_stays_so_when_the_log_is_lost(
    directory: Path, tmp_path: Path
) -> None:
    crashed = tmp_path / "crashed"
    async with serve(directory) as service:
        batch = await service.finish((await service.submit([line("a"), line("b")])).id)
        for _ in range(100):
            if not list((directory / "batches").iterdir()):
                break
            await asyncio.sleep(0.02)
        shutil.copytree(directory, crashed)
    log = crashed / "blendserve.db-wal"
    log.write_bytes(bytes(log.stat().st_size))
    async with serve(crashed) as service:
        again = await service.client.batches.retrieve(batch.id)
        assert again.status == "completed"
        assert [one["custom_id"] for one in await service.content(again.output_file_id)] == [
            "a",
            "b",
        ]


async def test_a_damaged_database_is_a_clean_error_and_can_be_moved_away(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crashed = tmp_path / "crashed"
    batch = await crashed_in_progress(directory, crashed)
    (crashed / "blendserve.db").write_bytes(b"\x00\xff" * 6000)
    (crashed / "blendserve.db-wal").unlink()
    assert await in_thread(["recover", "--batch-dir", str(crashed)]) == 1
    message = capsys.readouterr().err
    assert "is damaged" in message
    assert "Traceback" not in message
    lose_the_database(crashed)
    assert await in_thread(["recover", "--batch-dir", str(crashed), "--all"]) == 0
    async with serve(crashed, engine_for(Place("nowhere"))) as service:
        assert (await service.finish(batch.id)).request_counts.total == TOTAL


async def test_what_cannot_be_brought_back_says_why(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crashed = tmp_path / "crashed"
    batch = await crashed_in_progress(directory, crashed)
    lose_the_database(crashed)
    (crashed / "batches" / batch.id / "input.jsonl").unlink()
    assert await in_thread(["recover", "--batch-dir", str(crashed), batch.id, "batch_x"]) == 1
    message = capsys.readouterr().err
    assert f"{batch.id}: its input is gone" in message
    assert "batch_x: there is none of that name" in message
    assert (crashed / "lost+found" / batch.id / "results.journal").stat().st_size


async def test_two_lost_batches_of_one_id_are_both_kept(directory: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    batch = await crashed_in_progress(directory, crashed)
    earlier = shutil.copytree(crashed / "batches" / batch.id, tmp_path / "again")
    lose_the_database(crashed)
    async with serve(crashed, ScriptedEngine()):
        pass
    shutil.copytree(earlier, crashed / "batches" / batch.id)
    async with serve(crashed, ScriptedEngine()):
        pass
    assert sorted(p.name for p in (crashed / "lost+found").iterdir()) == [
        batch.id,
        f"{batch.id}.2",
    ]
