"""A batch directory that a server of version 0.1.0 left behind, killed, is taken over.

    pytest test/server/test_server_upgrade.py

The directory is a real one of 0.1.0 (test/fixtures/0.1.0/README.md says how it came about). It must
open after this and every later issue: no change of schema or journal may break these tests, and
nobody makes the fixture anew. Its windows are over in December 2026 and these tests must pass for
ever, so they move ``expires_at`` of the batch in progress in the copied database; nothing else in
it is touched. The engine is scripted; everything else is the service of today.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from scripted import ScriptedEngine, Service, serve

FIXTURE = Path(__file__).parents[1] / "fixtures" / "0.1.0" / "batch_dir"
COMPLETED = "batch_a03cd1b64c994cc395eabacdbc249a5b"
CANCELLED = "batch_b2c1ba5b5800d551b4059c12c295d8f2"
OPEN = "batch_12f0fdb18d5b00621969f8bb3886de94"
LOGGED = "file-d2c6256e5657e5a4939ba4786e922386"
"""A file whose row is only in the database's log, as a killed process leaves it."""

ANSWERED, TO_ANSWER = ["chat-1", "chat-2", "chat-4", "chat-6"], ["long-7", "chat-8", "chat-10"]
MODEL = "SmolLM2-135M-Instruct"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of it whose open batch has a day left, its log not folded into the database."""
    work, copy = tmp_path / "work", tmp_path / "batch_dir"
    shutil.copytree(FIXTURE, work)
    with closing(sqlite3.connect(work / "blendserve.db")) as database:
        move = "UPDATE batches SET expires_at = ? WHERE status = 'in_progress'"
        assert database.execute(move, (int(time.time()) + 86_400,)).rowcount == 1
        database.commit()
        shutil.copytree(work, copy)  # closing the connection would fold the log
    return copy


class Engine(ScriptedEngine):
    """A scripted engine that goes by the name of the fixture's model."""

    model = MODEL
    models = frozenset((MODEL, "default"))


def rows(folder: Path, batch: str) -> dict[str, Any]:
    with closing(sqlite3.connect(folder / "blendserve.db")) as database:
        database.row_factory = sqlite3.Row
        found = database.execute("SELECT * FROM batches WHERE id = ?", (batch,)).fetchone()
        return dict(found)


async def content(service: Service, file: str | None) -> bytes:
    assert file is not None
    return (await service.client.files.content(file)).content


def journal_lines() -> list[bytes]:
    """The result lines in the fixture's journal, behind their heads."""
    journal = (FIXTURE / "batches" / OPEN / "results.journal").read_bytes()
    return [line[line.index(b"{") :] for line in journal.splitlines()]


async def test_the_open_batch_goes_on_where_it_was_cut_short(directory: Path) -> None:
    kept = {orjson.loads(line)["custom_id"]: line for line in journal_lines()}
    engine = Engine()
    async with serve(directory, engine) as service:
        batch = await service.finish(OPEN)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (10, 7, 3)
        assert engine.executed == dict.fromkeys(TO_ANSWER, 1)
        output = (await content(service, batch.output_file_id)).splitlines()
        errors = (await content(service, batch.error_file_id)).splitlines()
    names = [orjson.loads(line)["custom_id"] for line in output]
    assert names == [*ANSWERED, *TO_ANSWER]
    assert output[:4] == [kept[name] for name in ANSWERED]
    parsed = [orjson.loads(line) for line in errors]
    failed = [(r["error"] or r["response"]["body"]["error"])["line"] for r in parsed]
    assert failed == [3, 5, 9]
    assert kept["refused-5"] in errors
    assert not [*(directory / "batches").iterdir()]


@pytest.mark.parametrize("batch", [COMPLETED, CANCELLED])
async def test_what_had_ended_is_served_as_it_was(directory: Path, batch: str) -> None:
    row = rows(directory, batch)
    async with serve(directory, Engine()) as service:
        shown = await service.client.batches.retrieve(batch)
        times = ("created_at", "in_progress_at", "finalizing_at", "expires_at", "completed_at")
        for name in ("status", *times, "cancelled_at", "input_file_id", "output_file_id",
                     "error_file_id", "endpoint", "completion_window"):  # fmt: skip
            assert getattr(shown, name) == row[name], name
        assert shown.metadata == orjson.loads(row["metadata"])
        counts = shown.request_counts
        assert counts is not None
        numbers = (counts.total, counts.completed, counts.failed)
        assert numbers == (row["total"], row["completed"], row["failed"])
        for file in (shown.input_file_id, shown.output_file_id, shown.error_file_id):
            assert await content(service, file) == (FIXTURE / "files" / str(file)).read_bytes()


async def test_lists_show_everything(directory: Path) -> None:
    async with serve(directory, Engine()) as service:
        batches = {batch.id async for batch in await service.client.batches.list()}
        files = {file.id async for file in await service.client.files.list()}
        assert await content(service, LOGGED) == (FIXTURE / "files" / LOGGED).read_bytes()
        await service.finish(OPEN)
    assert batches == {COMPLETED, CANCELLED, OPEN}
    assert files >= {path.name for path in (FIXTURE / "files").iterdir()}
