"""Memory of a live server over many small batches.

    python benchmark/soak.py [--jobs 500] [--every 50] [--at-once 4] [--json FILE] [FLAG ...]

Sends so many batches of 2 to 5 lines to one server, a few at once, and reads their results. After
every fifty, when nothing is open, it prints the resident memory (MiB) of the server process (HTTP,
tokenizer, batch service), of the scheduler (engine, policy) and of the detokenizer. Nothing is
deleted, so what the server keeps for each batch would show. FLAGs that this command does not know
go to SGLang. A small KV cache (``--max-total-tokens 16000``) is full within the first hundred.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openai
import psutil

from live_server import ServerProcess, live_server

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
WORDS = ("river", "stone", "lamp", "paper", "cloud", "garden", "bridge", "clock", "winter", "salt")
TERMINAL = ("completed", "failed", "expired", "cancelled")

Row = dict[str, float]


def main() -> int:
    """Run the jobs and print the table; returns 1 when a job was not answered in full."""
    from sglang.srt.blendserve.fetch_model.command import fetch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--every", type=int, default=50, help="jobs between two rows")
    parser.add_argument("--at-once", type=int, default=4, help="open batches")
    parser.add_argument("--model-path", type=Path, help="default SmolLM2-135M-Instruct")
    parser.add_argument("--json", type=Path, help="write the result here")
    args, flags = parser.parse_known_args()
    model = args.model_path or fetch("smollm2")
    result: dict[str, Any] = {"sglang": version("sglang"), "model": model.name, "flags": flags}
    with tempfile.TemporaryDirectory() as folder, live_server(Path(folder), model, flags) as server:
        result |= soak(server, args.jobs, args.every, args.at_once)
    print(f"{result['lines']} lines in {result['seconds']} s, {result['wrong']} jobs not in full")
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")
    return int(result["wrong"] > 0)


def soak(server: ServerProcess, jobs: int, every: int, at_once: int) -> dict[str, Any]:
    """Send the jobs; return the rows and how many lines and failures there were."""
    client = server.client()
    began = time.monotonic()
    print(
        "| jobs | server, MiB | scheduler, MiB | detokenizer, MiB |", "| ---: " * 4 + "|", sep="\n"
    )
    rows = [measure(server, 0)]
    lines = wrong = 0
    with ThreadPoolExecutor(at_once) as pool:
        for first in range(0, jobs, every):
            numbers = range(first, min(first + every, jobs))
            for asked, answered in pool.map(lambda number: job(client, number), numbers):
                lines += asked
                wrong += asked != answered
            rows.append(measure(server, numbers.stop))
    seconds = round(time.monotonic() - began)
    return {"lines": lines, "wrong": wrong, "seconds": seconds, "memory_mib": rows}


def job(client: openai.OpenAI, number: int) -> tuple[int, int]:
    """Send one batch and read its results; returns its lines and those that were answered."""
    draw = random.Random(number)
    endpoint = ENDPOINTS[number % 2]
    requests = [request(endpoint, draw, n) for n in range(draw.randint(2, 5))]
    content = b"".join(json.dumps(one).encode() + b"\n" for one in requests)
    file = client.files.create(file=(f"job-{number}.jsonl", content), purpose="batch")
    options: dict[str, Any] = {"endpoint": endpoint, "completion_window": "24h"}
    batch = client.batches.create(input_file_id=file.id, **options)
    while batch.status not in TERMINAL:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    text = client.files.content(batch.output_file_id).text if batch.output_file_id else ""
    return len(requests), len(text.splitlines())


def request(endpoint: str, draw: random.Random, number: int) -> dict[str, Any]:
    """Return one line: a prompt of 5 to 40 words, half of them with a common beginning."""
    words = " ".join(draw.choices(WORDS, k=draw.randint(5, 40)))
    text = ("Make a sentence of these words: " if draw.random() < 0.5 else "") + words
    body: dict[str, Any] = {"max_tokens": draw.randint(2, 12), "temperature": 0}
    if endpoint == ENDPOINTS[0]:
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = text
    return {"custom_id": str(number), "method": "POST", "url": endpoint, "body": body}


def measure(server: ServerProcess, jobs: int) -> Row:
    """Print and return a row: resident memory in MiB."""
    found = {"server": psutil.Process(server.process.pid)}
    for child in server.engine_processes():
        title = " ".join(child.cmdline())
        found |= {name: child for name in ("scheduler", "detokenizer") if name in title}
    row: Row = {"jobs": jobs}
    for name in ("server", "scheduler", "detokenizer"):
        row[name] = round(found[name].memory_info().rss / 2**20, 1)
    print("| " + " | ".join(f"{value:,}" for value in row.values()) + " |", flush=True)
    return row


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
