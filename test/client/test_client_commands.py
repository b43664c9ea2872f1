"""`submit`, `status`, `fetch`, `cancel` and `retry` against the real service on a port, with an
engine that follows a script. Run: pytest test/client"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow
import pytest
from on_a_port import free_port, on_a_port
from openai.resources.batches import Batches
from pyarrow import parquet as pyarrow_parquet
from scripted import MODEL, ScriptedEngine, Service, jsonl, line, serve

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.client import server

pytestmark = pytest.mark.anyio

LINES = [line(f"n{number}", f"prompt {number}") for number in range(20)]


class Shop:
    """A service, and the commands that use it."""

    def __init__(self, service: Service, url: str, folder: Path) -> None:
        self.service, self.url, self.folder = service, url, folder
        (folder / "in.jsonl").write_bytes(jsonl(LINES))

    async def run(self, *arguments: str | Path) -> int:
        given = [*map(str, arguments), "--server", self.url]
        return await asyncio.to_thread(cli.main, given)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(one) for one in (self.folder / name).read_bytes().splitlines()]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def shop(
    tmp_path: Path, anyio_backend: str, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shop]:
    monkeypatch.chdir(tmp_path)
    async with serve(tmp_path / "batches", engine) as service, on_a_port(service) as url:
        yield Shop(service, url, tmp_path)


async def test_submit_waits_and_fetches(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert await shop.run("submit", "-i", "in.jsonl", "--wait", "--metadata", "a=b") == 0
    assert {one["custom_id"] for one in shop.lines("in.out.jsonl")} == {
        one["custom_id"] for one in LINES
    }
    assert not Path("in.out.errors.jsonl").exists()
    batch, *shown = capsys.readouterr().out.splitlines()
    assert "20 done, 0 failed of 20" in shown[0]
    assert shown[1] == "in.out.jsonl"
    assert (await shop.service.client.batches.retrieve(batch)).metadata == {"a": "b"}
    # What is there is not written over, and nothing is sent for nothing.
    assert await shop.run("submit", "-i", "in.jsonl", "--wait") == 1
    assert "in.out.jsonl is there already" in capsys.readouterr().err
    assert len((await shop.service.client.batches.list()).data) == 1


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
async def test_inputs_are_unpacked(shop: Shop, suffix: str) -> None:
    path = Path("packed" + suffix)
    if suffix == ".parquet":
        rows = [{"custom_id": f"n{n}", "prompt": "A", "model": MODEL} for n in range(5)]
        pyarrow_parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(jsonl(LINES[:5])))
    assert await shop.run("submit", "-i", path, "--wait", "-o", "out.parquet") == 0
    found = pyarrow_parquet.read_table("out.parquet").to_pylist()
    assert {row["custom_id"] for row in found} == {f"n{n}" for n in range(5)}


async def test_status_fetch_and_retry_of_what_failed(
    shop: Shop, engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.refused = frozenset(("n3", "n4"))
    lines = [*LINES, line("bad", url="/v1/nothing"), line("n5", "again")]
    Path("in.jsonl").write_bytes(jsonl(lines))
    assert await shop.run("submit", "-i", "in.jsonl") == 0
    batch = capsys.readouterr().out.strip()
    assert await shop.run("fetch", batch, "--wait", "-o", "out.jsonl") == 0
    assert len(shop.lines("out.jsonl")) == 18
    assert len(shop.lines("out.errors.jsonl")) == 4
    capsys.readouterr()
    assert await shop.run("status", batch) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{batch}  completed  18 done, 4 failed of 22  Line 21: url is")
    kinds = sorted(shown.splitlines()[1:])
    assert kinds[0].startswith("  1 x not sent: duplicate_custom_id Line 22:")
    assert kinds[1].startswith("  1 x not sent: unsupported_url Line 21: url is '/v1/nothing'")
    assert kinds[1].endswith(" (bad)")
    assert kinds[2].startswith("  2 x 400: ")
    assert kinds[2].endswith((" (n3, n4)", " (n4, n3)"))
    assert len(kinds) == 3
    engine.refused = frozenset()
    assert await shop.run("retry", batch, "--wait", "-o", "again.jsonl") == 0
    again = capsys.readouterr().out.splitlines()[0]
    assert {one["custom_id"] for one in shop.lines("again.jsonl")} == {"n3", "n4", "n5"}
    assert [one["custom_id"] for one in shop.lines("again.errors.jsonl")] == ["bad"]
    assert await shop.run("status", "--json") == 0
    newest = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (newest["id"], newest["metadata"]) == (again, {"retry_of": batch})


async def test_what_ended_well_has_nothing_to_retry(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await shop.run("submit", "-i", "in.jsonl", "--wait") == 0
    batch = capsys.readouterr().out.split()[0]
    assert await shop.run("retry", batch) == 1
    assert "no line of it has failed" in capsys.readouterr().err
    assert await shop.run("retry", batch, "--wait") == 1
    assert "--wait needs -o" in capsys.readouterr().err


async def test_no_file_of_another_batch_is_taken_for_its_own(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.out.errors.jsonl").write_text("of another batch")
    assert await shop.run("submit", "-i", "in.jsonl", "--wait", "--overwrite") == 0
    assert "errors" not in capsys.readouterr().out
    assert not Path("in.out.errors.jsonl").exists()


@pytest.mark.parametrize("output", ["in.jsonl", "absent/out.jsonl", "out.jsonl.gz"])
async def test_nothing_is_sent_whose_results_could_not_be_written(shop: Shop, output: str) -> None:
    before = Path("in.jsonl").read_bytes()
    arguments = ["submit", "-i", "in.jsonl", "--wait", "--overwrite", "-o", output]
    assert await shop.run(*arguments) == 1
    assert Path("in.jsonl").read_bytes() == before
    assert (await shop.service.client.batches.list()).data == []


async def test_a_batch_is_asked_for_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server makes the batch, and its answer is lost."""
    sent: list[str] = []
    send = httpx.Client.send

    def lose(self: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        found = send(self, request, **more)
        if request.method == "POST" and request.url.path.endswith("/batches"):
            sent.append(request.url.path)
            raise httpx.ReadError("lost")
        return found

    monkeypatch.setattr(httpx.Client, "send", lose)
    assert await shop.run("submit", "-i", "in.jsonl") == 1
    assert "`sglang-blendserve status` shows whether" in capsys.readouterr().err
    assert len(sent) == 1
    assert len((await shop.service.client.batches.list()).data) == 1


async def test_cancel(
    shop: Shop, engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    async def for_ever(_: BatchLine) -> None:
        await asyncio.Event().wait()

    engine.script = for_ever
    assert await shop.run("submit", "-i", "in.jsonl") == 0
    batch = capsys.readouterr().out.strip()
    assert await shop.run("fetch", batch, "-o", "out.jsonl") == 1
    assert "it has not ended; --wait waits for it" in capsys.readouterr().err
    assert await shop.run("cancel", "batch_none", batch) == 1
    assert "batch_none: " in capsys.readouterr().err
    assert (await shop.service.finish(batch)).status == "cancelled"


async def test_ctrl_c_ends_the_waiting_and_not_the_batch(
    shop: Shop, engine: ScriptedEngine
) -> None:
    go_on = threading.Event()

    async def wait(_: BatchLine) -> None:
        while not go_on.is_set():
            await asyncio.sleep(0.02)

    engine.script = wait
    command = [sys.executable, "-m", "sglang.srt.blendserve.cli", "submit", "-i", "in.jsonl"]
    process = await asyncio.create_subprocess_exec(
        *(*command, "--wait", "--server", shop.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    batch = (await process.stdout.readline()).decode().strip()
    process.send_signal(2)
    _, said = await process.communicate()
    assert process.returncode == server.INTERRUPTED
    assert f"fetch {batch} --wait" in said.decode()
    go_on.set()
    assert (await shop.service.finish(batch)).status == "completed"


class _Interrupted(io.StringIO):
    """Standard output; Ctrl-C comes right behind the first line."""

    def flush(self) -> None:
        raise KeyboardInterrupt


async def test_ctrl_c_behind_the_id_says_how_to_go_on(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _Interrupted()
    monkeypatch.setattr(sys, "stdout", said)
    assert await shop.run("submit", "-i", "in.jsonl", "--wait") == server.INTERRUPTED
    batch = said.getvalue().strip()
    assert f"fetch {batch} --wait -o in.out.jsonl" in capsys.readouterr().err
    assert (await shop.service.finish(batch)).status == "completed"


async def test_ctrl_c_while_a_batch_is_made_says_that_it_may_be_there(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Batches.create

    def interrupted(*given: Any, **named: Any) -> None:
        made(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(Batches, "create", interrupted)
    assert await shop.run("submit", "-i", "in.jsonl") == server.INTERRUPTED
    assert "`sglang-blendserve status` shows" in capsys.readouterr().err
    assert await shop.run("status") == 0
    assert "batch_" in capsys.readouterr().out


@pytest.fixture
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr("sglang.srt.blendserve.client.results._SHORTEST_SECONDS", 0.05)


async def test_a_server_that_is_not_there_yet_is_asked_again(
    tmp_path: Path, anyio_backend: str, monkeypatch: pytest.MonkeyPatch, no_delays: None
) -> None:
    monkeypatch.chdir(tmp_path)
    port = free_port()
    async with serve(tmp_path / "batches") as service:
        batch = await service.submit(LINES)
        arguments = ["fetch", batch.id, "--wait", "-o", "out.jsonl"]
        arguments += ["--server", f"http://127.0.0.1:{port}"]
        fetching = asyncio.create_task(asyncio.to_thread(cli.main, arguments))
        await asyncio.sleep(1.0)
        assert not fetching.done()
        async with on_a_port(service, port):
            assert await fetching == 0
    assert Path("out.jsonl").read_bytes().count(b"\n") == 20


def test_what_cannot_be_is_said_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_delays: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(jsonl(LINES))
    Path("torn.jsonl.gz").write_bytes(gzip.compress(jsonl(LINES))[:-12])
    Path("no.jsonl").write_text('{"custom_id": "a"}\nno JSON\n')
    free = f"http://127.0.0.1:{free_port()}"
    for arguments, words in (
        (["status", "--server", "here"], "--server here is no URL like http"),
        (["status", "--server", free], "the server does not answer"),
        (["submit", "-i", "absent.jsonl", "--server", free], "No such file"),
        (["submit", "-i", "torn.jsonl.gz", "--server", free], "cannot be unpacked"),
        (["submit", "-i", "no.jsonl", "--server", free], "no line of no.jsonl names its url"),
    ):
        assert cli.main(arguments) == 1
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
