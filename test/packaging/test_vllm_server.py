"""`benchmark/documents/vllm_server.py` against a server that speaks OpenAI's API.

pytest test/packaging/test_vllm_server.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmark" / "documents"
sys.path.insert(0, str(FOLDER))

import vllm_server  # noqa: E402
from vllm_batch import Usage  # noqa: E402

# In vLLM's place: answers both endpoints with the prompt's own words, and refuses one of them.
SERVER = """
import sys
import uvicorn
from fastapi import FastAPI, HTTPException, Request

app = FastAPI()
usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12,
         "prompt_tokens_details": {"cached_tokens": 4}}

@app.get("/health")
def health():
    return {}

@app.post("/v1/completions")
async def completions(request: Request):
    body = await request.json()
    if body["prompt"] == "refuse me":
        raise HTTPException(400, "no")
    choice = {"index": 0, "text": body["prompt"], "finish_reason": "stop", "logprobs": None}
    return {"id": "c", "object": "text_completion", "created": 1, "model": body["model"],
            "choices": [choice], "usage": usage}

@app.post("/v1/chat/completions")
async def chat(request: Request):
    body = await request.json()
    message = {"role": "assistant", "content": body["messages"][0]["content"]}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [choice], "usage": usage}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


def line(custom_id: str, url: str, body: dict[str, object]) -> str:
    """A line of a batch file."""
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """A chat, a plain completion, and one that the server refuses."""
    messages = [{"role": "user", "content": "hello"}]
    lines = [
        line("chat", "/v1/chat/completions", {"model": "m", "messages": messages}),
        line("plain", "/v1/completions", {"model": "m", "prompt": "good day"}),
        line("bad", "/v1/completions", {"model": "m", "prompt": "refuse me"}),
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lines_of_both_endpoints_are_answered_and_errors_counted(
    batch: Path, tmp_path: Path, free_port: int
) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    command = [sys.executable, str(script), str(free_port)]
    done = vllm_server.run(command, free_port, batch, tmp_path / "log")
    assert done.texts == {"chat": "hello", "plain": "good day"}
    assert done.usage == Usage(2, 1, 20, 4, 8)
    assert done.times.seconds > 0


def test_a_server_that_ends_at_start_is_an_error_with_its_words(
    batch: Path, tmp_path: Path, free_port: int
) -> None:
    command = ["bash", "-c", "echo 'no such model'; exit 3"]
    with pytest.raises(RuntimeError, match=r"no such model\n.*\n?.*status 3"):
        vllm_server.run(command, free_port, batch, tmp_path / "log")


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
