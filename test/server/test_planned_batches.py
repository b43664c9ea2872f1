"""Batches with more lines than the engine's window, on a real engine: planned as a whole.

    pytest test/server/test_planned_batches.py

The same lines are answered with all of them in the engine, and by plan with few in it, sorted by
source. In float32 with greedy decoding the answers are equal. Meanwhile processes are killed.
"""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_process import Batch
from scripted import jsonl
from server_process import running
from test_server import lines_of, submit

pytestmark = pytest.mark.engine

SHARED = "You are a helpful assistant. " * 6
EACH = 60


def request(name: str, text: str, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": name,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": SHARED + text, "temperature": 0} | body,
    }


LINES = [
    *(request(f"long{n}", f"Repeat {n}: " + "words " * 80, max_tokens=2) for n in range(EACH)),
    *(request(f"short{n}", f"Count from {n}.", max_tokens=24) for n in range(EACH)),
    request("several", "Say one thing.", max_tokens=6, n=3),
    request("refused", "x", max_tokens=6, temperature=-1),
]
BAD = b'{"custom_id": "long3", "method": "POST", "url": "/v1/completions", "body": {}}\n'


def flags(kwargs: dict[str, Any]) -> list[str]:
    given = []
    for name, value in kwargs.items():
        given += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    return given


def texts(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What each line was answered, by its name."""
    found = {}
    for one in results:
        body = one["response"]["body"]
        found[one["custom_id"]] = (
            [choice["text"] for choice in body["choices"]],
            body["usage"]["prompt_tokens"],
        )
    assert len(found) == len(results)
    return found


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """The answers with all lines in the engine at once."""
    batch = Batch(tmp_path_factory.mktemp("at_once"), str(tiny_model))
    (batch.folder / "in.jsonl").write_bytes(jsonl(LINES))
    assert batch.wait(batch.start()) == 0, batch.printed
    assert batch.summary["prepare_seconds"] is None
    return texts(batch.results(batch.output))


def test_a_run_is_planned_and_survives_the_death_of_its_helpers(
    tmp_path: Path, tiny_model: Path, at_once: dict[str, Any]
) -> None:
    batch = Batch(tmp_path, str(tiny_model))
    (tmp_path / "in.jsonl").write_bytes(gzip.compress(jsonl(LINES) + BAD))
    process = batch.start("--max-in-flight", "8")
    killed = set()
    while process.poll() is None:
        for child in helpers(process.pid):
            if child.pid not in killed and batch.output.exists() and batch.output.stat().st_size:
                killed.add(child.pid)
                child.kill()
                break
        time.sleep(0.1)
    assert batch.wait(process) == 0, batch.printed
    assert killed, batch.printed
    assert texts(batch.results(batch.output)) == at_once
    errors = batch.results(batch.errors)
    assert sorted(one["custom_id"] for one in errors) == ["long3", "refused"]
    assert batch.summary["prepare_seconds"] > 0
    assert batch.summary["first_forward_seconds"] >= 0
    assert not (tmp_path / "out.jsonl.requests").exists()


def helpers(pid: int) -> list[psutil.Process]:
    """The processes that tokenize and plan."""
    found = []
    for child in psutil.Process(pid).children():
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "planner_process" in line:
            found.append(child)
    return found


def test_a_run_that_was_stopped_goes_on_by_plan(
    tmp_path: Path, tiny_model: Path, at_once: dict[str, Any]
) -> None:
    batch = Batch(tmp_path, str(tiny_model))
    (tmp_path / "in.jsonl").write_bytes(jsonl(LINES))
    process = batch.start("--max-in-flight", "8")
    batch.wait_for_results(process, 20)
    process.terminate()
    assert batch.wait(process) == 130, batch.printed
    before = batch.names
    assert batch.wait(batch.start("--max-in-flight", "8", "--resume")) == 0, batch.printed
    assert batch.names[: len(before)] == before
    assert texts(batch.results(batch.output)) == at_once


def test_a_batch_of_the_server_is_planned(
    tmp_path: Path, tiny_model: Path, cpu_engine_kwargs: dict[str, Any], at_once: dict[str, Any]
) -> None:
    given = ["--model-path", str(tiny_model), "--schedule-policy", "blendserve"]
    given += ["--max-total-tokens", "4000", "--dtype", "float32", "--random-seed", "1"]
    given += ["--batch-dir", str(tmp_path / "batches"), "--batch-max-in-flight", "8"]
    with running([*given, *flags(cpu_engine_kwargs)], tmp_path / "log") as server:
        client = server.client()
        batch = submit(client, jsonl(LINES) + BAD, "/v1/completions")
        planned = False
        while batch.status not in ("completed", "failed"):
            planned = planned or bool(helpers(server.process.pid))
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed", server.tail()
        assert planned, server.tail()
        assert texts(lines_of(client, batch.output_file_id)) == at_once
        errors = lines_of(client, batch.error_file_id)
        assert sorted(one["custom_id"] for one in errors) == ["long3", "refused"]
        assert not [*(tmp_path / "batches").rglob("tokens.i32")]
        # Stopped in the middle, it is gone on with.
        other = submit(client, jsonl(LINES), "/v1/completions")
        while client.batches.retrieve(other.id).request_counts.completed < 20:
            time.sleep(0.1)
        server.process.kill()
    with running([*given, *flags(cpu_engine_kwargs)], tmp_path / "log2") as server:
        client = server.client()
        while (other := client.batches.retrieve(other.id)).status not in ("completed", "failed"):
            time.sleep(0.1)
        assert other.status == "completed", server.tail()
        assert texts(lines_of(client, other.output_file_id)) == at_once
