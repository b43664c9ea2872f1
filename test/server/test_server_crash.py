"""A real server that is killed again and again: no result is lost, and none comes twice."""

from __future__ import annotations

import time
from pathlib import Path

import openai
import pytest
from server_process import running
from test_server import (  # noqa: F401
    answers,
    command,
    completion,
    finish,
    jsonl,
    lines_of,
    submit,
)

pytestmark = pytest.mark.engine


def test_no_crash_loses_or_repeats_a_result(command: list[str], tmp_path: Path) -> None:  # noqa: F811
    """kill -9 of the server, then of the scheduler, then SIGTERM; a new server always goes on."""
    flags = [*command, "--batch-dir", str(tmp_path / "batches")]
    content = jsonl([completion(f"{n}", f"Count: {n},", 4 + n % 13) for n in range(60)])
    with running(flags, tmp_path / "log-1") as server:
        client = server.client()
        calm = finish(client, submit(client, content, "/v1/completions").id)
        expected = answers(lines_of(client, calm.output_file_id))
        batch = submit(client, content, "/v1/completions")
        wait_for_results(client, batch.id, 1)
        server.kill()
    with running(flags, tmp_path / "log-2") as server:
        done = server.client().batches.retrieve(batch.id)
        assert done.status == "in_progress"
        assert done.request_counts.completed >= 1
        wait_for_results(server.client(), batch.id, done.request_counts.completed + 1)
        for child in server.engine_processes():
            if "scheduler" in child.name() or "schedul" in child.name():
                child.kill()
        server.process.wait(timeout=180)  # SGLang ends the server when its engine dies
    with running(flags, tmp_path / "log-3") as server:
        wait_for_results(server.client(), batch.id, 2)
        server.terminate()
    with running(flags, tmp_path / "log-4") as server:
        client = server.client()
        batch = finish(client, batch.id)
        assert batch.status == "completed"
        assert batch.request_counts.model_dump() == {"total": 60, "completed": 60, "failed": 0}
        output = lines_of(client, batch.output_file_id)
        assert len({one["id"] for one in output}) == 60
        assert answers(output) == expected


def wait_for_results(client: openai.OpenAI, batch_id: str, number: int) -> None:
    while client.batches.retrieve(batch_id).request_counts.completed < number:
        time.sleep(0.2)
