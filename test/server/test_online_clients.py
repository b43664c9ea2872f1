"""Online clients of a real server who try to reach the requests of a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import jsonl
from server_process import ServerProcess, running

pytestmark = pytest.mark.engine

LINES = 24


@pytest.fixture(scope="module")
def server(
    tiny_model: Path, cpu_engine_kwargs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    flags = ["--model-path", str(tiny_model), "--schedule-policy", "blendserve"]
    flags += ["--max-total-tokens", "6000", "--batch-dir", str(folder / "batches")]
    for name, value in cpu_engine_kwargs.items():
        flags += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    with running(flags, folder / "log", api_key="secret") as started:
        yield started


def test_whatever_a_client_asks_for_the_batch_is_answered(server: ServerProcess) -> None:
    client = server.client()
    lines = [
        {
            "custom_id": f"c{n}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": f"{n} colours", "max_tokens": 200, "ignore_eos": True},
        }
        for n in range(LINES)
    ]
    file = client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    job = batch.id.removeprefix("batch_")
    headers = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as online:
        while client.batches.retrieve(batch.id).status == "validating":
            time.sleep(0.05)
        for rid in ("b", "blendserve-", f"blendserve-{job}-", f"blendserve-{job}-0-00000001"):
            sampling = {"max_new_tokens": 1}
            bodies = {
                "/generate": {"text": "x", "rid": rid, "sampling_params": sampling},
                "/v1/completions": {"model": "default", "prompt": "x", "rid": rid, "max_tokens": 1},
            }
            for path, body in bodies.items():
                answer = online.post(path, json=body)
                assert answer.status_code == 400, (path, rid, answer.text)
                assert "kept for requests of batches" in answer.text
            assert online.post("/abort_request", json={"rid": rid}).status_code == 400
        for _ in range(8):
            assert online.post("/abort_request", json={"abort_all": True}).status_code == 200
            time.sleep(0.1)
        allowed = {"text": "x", "rid": "mine-1", "sampling_params": {"max_new_tokens": 1}}
        assert online.post("/generate", json=allowed).status_code == 200
        elsewhere = {"origin": "https://elsewhere.example"}
        refused = online.get("/v1/batches", headers=elsewhere)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
        assert online.get("/v1/models", headers=elsewhere).status_code == 200
        unauthorized = httpx.get(f"{server.url}/v1/batches")
        assert unauthorized.status_code == 401
        assert unauthorized.headers["x-request-id"]
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        batch = client.batches.retrieve(batch.id)
        time.sleep(0.2)
    counts = batch.request_counts
    assert (counts.completed, counts.failed) == (LINES, 0)
