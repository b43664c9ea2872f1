"""Batches with more lines than the engine's window, on a real engine: planned as a whole.

    pytest test/server/test_planned_batches.py

The same lines are answered with all of them in the engine, and by plan with few in it, sorted by
source. In float32 with greedy decoding the answers are equal. Meanwhile processes are killed.
Five engine starts.
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
EACH = 40


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


def test_a_planned_run_survives_the_death_of_its_planner_and_a_stop(
    tmp_path: Path, tiny_model: Path, at_once: dict[str, Any]
) -> None:
    batch = Batch(tmp_path, str(tiny_model))
    (tmp_path / "in.jsonl").write_bytes(gzip.compress(jsonl(LINES) + BAD))
    process = batch.start("--max-in-flight", "8")
    batch.wait_for_results(process, 5)
    [planner] = helpers(process.pid)
    planner.kill()
    batch.wait_for_results(process, 20)
    process.terminate()
    assert batch.wait(process) == 130, batch.printed
    before = batch.names
    assert 20 <= len(before) < len(at_once)
    assert batch.wait(batch.start("--max-in-flight", "8", "--resume")) == 0, batch.printed
    assert batch.names[: len(before)] == before
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


def test_batches_of_the_server_are_planned_together(
    tmp_path: Path, tiny_model: Path, cpu_engine_kwargs: dict[str, Any], at_once: dict[str, Any]
) -> None:
    given = ["--model-path", str(tiny_model), "--schedule-policy", "blendserve"]
    given += ["--max-total-tokens", "4000", "--dtype", "float32", "--random-seed", "1"]
    given += ["--batch-dir", str(tmp_path / "batches"), "--batch-max-in-flight", "8"]
    with running([*given, *flags(cpu_engine_kwargs)], tmp_path / "log") as server:
        client = server.client()
        batches = [submit(client, jsonl(LINES) + bad, "/v1/completions") for bad in (BAD, b"")]
        most = 0
        for number, batch in enumerate(batches):
            while batch.status not in ("completed", "failed"):
                most = max(most, len(helpers(server.process.pid)))
                time.sleep(0.1)
                batch = client.batches.retrieve(batch.id)
            assert batch.status == "completed", server.tail()
            assert texts(lines_of(client, batch.output_file_id)) == at_once
            batches[number] = batch
        assert most == 1, server.tail()  # one plans them both
        errors = lines_of(client, batches[0].error_file_id)
        assert sorted(one["custom_id"] for one in errors) == ["long3", "refused"]
        assert not [*(tmp_path / "batches").rglob("tokens.i32")]
        # Stopped in the middle, it is gone on with.
        other = submit(client, jsonl(LINES), "/v1/completions")
        while client.batches.retrieve(other.id).request_counts.completed < 15:
            time.sleep(0.1)
        server.process.kill()
    with running([*given, *flags(cpu_engine_kwargs)], tmp_path / "log2") as server:
        client = server.client()
        while (other := client.batches.retrieve(other.id)).status not in ("completed", "failed"):
            time.sleep(0.1)
        assert other.status == "completed", server.tail()
        assert texts(lines_of(client, other.output_file_id)) == at_once
