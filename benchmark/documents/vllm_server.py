"""vLLM over a batch file of chats and plain completions, which `vllm run-batch` refuses.

`vllm serve` gets all lines at once from OpenAI's own client, in the order of the file, and queues
them itself, as it does with the lines that `run-batch` reads.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vllm_batch

START_SECONDS = 900
"""Longest wait for the server: the first start compiles."""


@dataclass(frozen=True, slots=True)
class ServedRun:
    """One batch through a server: figures, and the text of each answer by ``custom_id``."""

    times: vllm_batch.Times
    usage: vllm_batch.Usage
    texts: dict[str, str]


def serve_command(
    folder: Path, model: Path, names: Sequence[str], kv_tokens: int, port: int,
    flags: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """The command line of the server; ``names`` are the names that requests have for the model."""
    line = [str(folder / "bin" / "vllm"), "serve", str(model), "--served-model-name", *names]
    line += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    return [*line, *vllm_batch.engine_flags(kv_tokens), *flags]


def run(command: Sequence[str], port: int, batch: Path, log: Path) -> ServedRun:
    """Start the server, answer the batch, stop the server.

    Raises:
        RuntimeError: the server ended, or did not come up in `START_SECONDS`.
    """
    lines = [json.loads(text) for text in batch.read_text(encoding="utf-8").splitlines()]
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=vllm_batch.environment(), stdout=file, stderr=subprocess.STDOUT
        )
        try:
            _wait_until_up(process, port, log)
            started = time.monotonic() - began
            seconds, answers = asyncio.run(_answer(f"http://127.0.0.1:{port}/v1", lines))
        finally:
            process.terminate()
            process.wait(timeout=120)
    return ServedRun(
        times=vllm_batch.Times(round(started, 3), round(seconds, 3)),
        usage=vllm_batch.sum_usage(answers.values()),
        texts={key: text_of(body) for key, body in answers.items() if body is not None},
    )


def text_of(body: dict[str, Any]) -> str:
    """The text of an answer of either endpoint."""
    choice = body["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


async def _answer(
    url: str, lines: Sequence[dict[str, Any]]
) -> tuple[float, dict[str, dict[str, Any] | None]]:
    """Send all lines at once; returns the seconds to the last answer, and the answers."""
    import openai

    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, timeout=3600.0
    ) as client:

        async def one(line: dict[str, Any]) -> dict[str, Any] | None:
            of = client.chat.completions if "chat" in line["url"] else client.completions
            try:
                return (await of.create(**line["body"])).model_dump()
            except openai.APIError:
                return None

        began = time.monotonic()
        answers = await asyncio.gather(*map(one, lines))
        seconds = time.monotonic() - began
    return seconds, {line["custom_id"]: body for line, body in zip(lines, answers, strict=True)}


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{end}\nvllm serve ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError(f"vllm serve was not up after {START_SECONDS} s; its words are in {log}")
