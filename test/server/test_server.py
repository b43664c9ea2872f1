"""The batch API of a real ``launch_server`` with a real model, through the official client."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import Batch
from scripted import jsonl
from server_process import ServerProcess, free_port, running

pytestmark = pytest.mark.engine

TERMINAL = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def command(model_path: Path, cpu_engine_kwargs: dict[str, Any]) -> list[str]:
    """The server's command line but for its directory: greedy answers repeat in float32."""
    flags = ["--model-path", str(model_path), "--schedule-policy", "blendserve"]
    flags += ["--dtype", "float32", "--max-total-tokens", "16000"]
    for name, value in cpu_engine_kwargs.items():
        flags.append("--" + name.replace("_", "-"))
        if value is not True:
            flags.append(str(value))
    return flags


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(command: list[str], folder: Path) -> Iterator[ServerProcess]:
    flags = [*command, "--batch-dir", str(folder / "batches"), "--enable-metrics"]
    with running(flags, folder / "log", api_key="secret") as started:
        yield started


def chat(custom_id: str, text: str, tokens: int = 6, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body | more,
    }


def completion(
    custom_id: str, prompt: str | list[str], tokens: int = 6, **more: Any
) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": body | more,
    }


def submit(client: openai.OpenAI, content: bytes, endpoint: str, **more: Any) -> Batch:
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    options: dict[str, Any] = {"completion_window": "24h"} | more
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, **options)


def finish(client: openai.OpenAI, batch_id: str, seconds: float = 500) -> Batch:
    end = time.monotonic() + seconds
    while (batch := client.batches.retrieve(batch_id)).status not in TERMINAL:
        assert time.monotonic() < end, batch
        time.sleep(0.5)
    return batch


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    text = client.files.content(file_id).text if file_id else ""
    return [json.loads(one) for one in text.splitlines()]


def answers(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Return each line's answer as JSON, without what names the batch, the moment or the cache."""
    found = {}
    for one in lines:
        body = dict(one["response"]["body"])
        for name in ("id", "created", "usage"):
            del body[name]
        found[one["custom_id"]] = json.dumps(body, sort_keys=True)
    return found


def test_several_hundred_mixed_lines(server: ServerProcess) -> None:
    client = server.client()
    chats = [chat(f"chat-{n}", f"Say the number {n}.", 3 + n % 5) for n in range(150)]
    chats.append(chat("answers", "Hello!", n=3))
    chats.append(chat("tools", "Hello!", logprobs=True, top_logprobs=2))
    texts = [completion(f"text-{n}", f"Item {n % 7}, number {n}:", 2 + n % 9) for n in range(150)]
    texts.append(completion("several", ["One,", "Two,"]))
    bad = [
        chat("stream", "x", stream=True),
        chat("type", "x", temperature="warm"),
        chat("long", "word " * 9000),
        {**chat("where", "x"), "url": "/v1/embeddings"},
        {**chat("which", "x"), "body": {"model": "gpt-4", "messages": []}},
    ]
    first = submit(
        client,
        jsonl(chats) + b"{broken\n" + jsonl([*bad, chats[0]]),
        "/v1/chat/completions",
        metadata={"kind": "mixed"},
    )
    second = submit(client, jsonl(texts), "/v1/completions", completion_window="2h")
    seen: set[int] = set()
    while client.batches.retrieve(first.id).status not in TERMINAL:
        seen.add(client.batches.retrieve(first.id).request_counts.completed)
        time.sleep(0.5)
    assert len(seen) > 2  # the counts moved
    first, second = finish(client, first.id), finish(client, second.id)

    assert (first.status, second.status) == ("completed", "completed")
    assert second.request_counts.model_dump() == {"total": 151, "completed": 151, "failed": 0}
    assert first.request_counts.model_dump() == {"total": 159, "completed": 152, "failed": 7}
    assert first.metadata == {"kind": "mixed"}
    assert [one["custom_id"] for one in lines_of(client, second.output_file_id)] == [
        one["custom_id"] for one in texts
    ]
    output = {one["custom_id"]: one for one in lines_of(client, first.output_file_id)}
    assert len(output["answers"]["response"]["body"]["choices"]) == 3
    usage = [one["response"]["body"]["usage"] for one in output.values()]
    assert first.usage.output_tokens == sum(one["completion_tokens"] for one in usage)
    assert first.usage.input_tokens == sum(one["prompt_tokens"] for one in usage)
    assert 0 < first.usage.input_tokens_details.cached_tokens < first.usage.input_tokens
    errors = lines_of(client, first.error_file_id)
    codes = {
        one["custom_id"]: one["error"]["code"] if one["error"] else one["response"]["status_code"]
        for one in errors
    }
    assert codes == {
        None: "invalid_json_line",
        "stream": "streaming_unsupported",
        "type": 400,
        "long": 400,
        "where": "url_mismatch",
        "which": "model_mismatch",
        "chat-0": "duplicate_custom_id",
    }
    for one in output.values():  # each is what the endpoint itself would have answered
        openai.types.chat.ChatCompletion.model_validate(one["response"]["body"])


def test_answers_are_those_of_the_online_endpoint(server: ServerProcess) -> None:
    client = server.client()
    batch = submit(client, jsonl([chat("a", "Name a colour.")]), "/v1/chat/completions")
    batch = finish(client, batch.id)
    [one] = lines_of(client, batch.output_file_id)
    online = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Name a colour."}],
        max_tokens=6,
        temperature=0,
    )
    assert one["response"]["body"]["choices"][0]["message"]["content"] == (
        online.choices[0].message.content
    )


def test_responses_are_those_of_the_online_endpoint(server: ServerProcess) -> None:
    client = server.client()
    given: dict[str, dict[str, Any]] = {
        "text": {"input": "Name a colour."},
        "told": {"input": "Name a bird.", "instructions": "You know one bird, the robin."},
        "turns": {
            "input": [
                {"role": "user", "content": "My name is Ada."},
                {"role": "assistant", "content": "Hello Ada."},
                {"role": "user", "content": [{"type": "input_text", "text": "What is it?"}]},
            ]
        },
    }
    rest = {"temperature": 0, "max_output_tokens": 10}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/responses", "body": {**body, **rest}}
        for name, body in given.items()
    ]
    stored = {"input": "x", "previous_response_id": "resp_1"}
    lines.append({**lines[0], "custom_id": "stored", "body": stored})
    batch = finish(client, submit(client, jsonl(lines), "/v1/responses").id)
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 3, "failed": 1}
    served = client.models.list().data[0].id
    for one in lines_of(client, batch.output_file_id):
        found = openai.types.responses.Response.model_validate(one["response"]["body"])
        online = client.responses.create(model=served, **given[one["custom_id"]], **rest)
        assert found.output_text == online.output_text
        assert found.status == online.status == "incomplete"
        assert found.id != online.id
    [error] = lines_of(client, batch.error_file_id)
    assert error["response"]["body"]["error"]["param"] == "previous_response_id"


def test_scores_are_those_of_the_online_endpoint(server: ServerProcess) -> None:
    client = server.client()
    bodies = [
        {"query": f"Is {n} even? ", "items": ["Yes", "No", "Perhaps"], "label_token_ids": [5, 28]}
        for n in range(20)
    ]
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/score", "body": body}
        for n, body in enumerate(bodies)
    ]
    batch = finish(client, submit(client, jsonl(lines), "/v1/score").id)
    assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    found = {int(one["custom_id"]): one for one in lines_of(client, batch.output_file_id)}
    headers = {"authorization": "Bearer secret"}
    for number in (0, 19):
        online = httpx.post(f"{server.url}/v1/score", json=bodies[number], headers=headers).json()
        scores = found[number]["response"]["body"]["scores"]
        assert np.allclose(scores, online["scores"], rtol=1e-3, atol=1e-9)
        assert len(scores) == 3


def test_cancel_within_ten_seconds(server: ServerProcess) -> None:
    client = server.client()
    lines = [chat(str(n), f"Write a long story about {n}.", 600) for n in range(100)]
    batch = submit(client, jsonl(lines), "/v1/chat/completions")
    while client.batches.retrieve(batch.id).status != "in_progress":
        time.sleep(0.1)
    time.sleep(3)  # let some of them run
    began = time.monotonic()
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = finish(client, batch.id, seconds=10)
    assert batch.status == "cancelled"
    assert time.monotonic() - began < 10
    counts = batch.request_counts
    assert counts.completed + counts.failed == counts.total == 100
    online = client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "Hello!"}], max_tokens=2
    )
    assert online.usage.completion_tokens == 2  # the engine is free again


def test_everything_asks_for_the_key(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/batches").status_code == 401
    assert httpx.get(f"{server.url}/v1/files").status_code == 401
    with pytest.raises(openai.AuthenticationError):
        server.client().with_options(api_key="wrong").batches.list()
    page = httpx.get(f"{server.url}/batches", headers={"authorization": "Bearer secret"})
    assert page.status_code == 200
    assert page.text.count("<progress") >= 3


def test_metrics(server: ServerProcess) -> None:
    time.sleep(6)
    text = httpx.get(f"{server.url}/metrics").text
    assert 'blendserve:batch_batches{status="completed"} 5.0' in text
    assert 'blendserve:batch_batches{status="cancelled"} 1.0' in text


def test_a_second_server_is_refused_before_it_loads_a_model(
    server: ServerProcess, command: list[str], folder: Path
) -> None:
    flags = [*command, "--batch-dir", str(folder / "batches"), "--port", str(free_port())]
    second = subprocess.run(
        [sys.executable, "-m", "sglang.launch_server", *flags],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert second.returncode != 0
    assert f"in use by another server (process {server.process.pid})" in second.stderr
    assert "--batch-dir" in second.stderr
    assert "Load weight" not in second.stdout + second.stderr
