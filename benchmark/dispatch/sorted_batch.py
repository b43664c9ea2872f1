"""A batch sorted by source through the batch API of a real engine, with a small window.

    git worktree add ../before 7d35c0b~1
    python benchmark/dispatch/sorted_batch.py --build before=../before --build now=. --json out.json

Each round starts a server of every build in turn, sends it the demo's batch sorted by source (MMLU,
GSM8K, writing) ``--copies`` times over, and waits for its end. Seconds are from the creation of the
batch to its last answer as the server counts them, so validating and preparing are in them. The
copies differ in their first words, so that they share nothing with each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from live_server import live_server
from sglang.srt.blendserve.fetch_model.command import fetch

DEMO = Path(__file__).resolve().parents[1] / "demo" / "demo.jsonl"
SOURCES = ("mmlu", "gsm8k", "writing")


def main() -> int:
    """Measure and print; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", action="append", metavar="NAME=PATH", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    builds = dict(given.split("=", 1) for given in args.build)
    batch, model = sorted_batch(args.copies), Path(fetch("smollm2"))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in builds}
    for number in range(args.rounds):
        names = [*builds]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(answer(Path(builds[name]), batch, model, args.window))
            print(name, found[name][-1], flush=True)
            shown = {"window": args.window, "lines": batch.count(b"\n"), "builds": found}
            if args.json is not None:
                args.json.write_text(json.dumps(shown, indent=2) + "\n")
    for name, rounds in found.items():
        print(name, statistics.median(one["seconds"] for one in rounds), "s")
    return 0


def sorted_batch(copies: int) -> bytes:
    """Return the demo's lines sorted by source, each so many times."""
    lines = [json.loads(text) for text in DEMO.read_text().splitlines()]
    lines.sort(key=lambda line: SOURCES.index(line["custom_id"].split("-")[0]))
    found = []
    for line in lines:
        for copy in range(copies):
            one: dict[str, Any] = json.loads(json.dumps(line))
            one["custom_id"] += f"-{copy}"
            one["url"] = "/v1/chat/completions"  # a batch is for one endpoint
            body = one["body"]
            if "prompt" in body:
                body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
            first = body["messages"][0]
            first["content"] = f"{copy}. {first['content']}" if copy else first["content"]
            body |= {"temperature": 0, "model": "default"}
            found.append(json.dumps(one) + "\n")
    return "".join(found).encode()


def answer(build: Path, batch: bytes, model: Path, window: int) -> dict[str, float]:
    """Return how long a server of a ``build`` takes for the batch, and what it made of it."""
    os.environ["PYTHONPATH"] = str(build.resolve() / "python" / "boot")
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--batch-max-in-flight", str(window)]
        with live_server(Path(folder), model, flags) as server:
            client = server.client()
            file = client.files.create(file=("in.jsonl", batch), purpose="batch")
            began = time.monotonic()
            one = client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
            while one.status not in ("completed", "failed", "expired", "cancelled"):
                time.sleep(0.2)
                one = client.batches.retrieve(one.id)
            seconds = time.monotonic() - began
            assert one.usage is not None
            assert one.request_counts is not None
            return {
                "seconds": seconds,
                "completed": one.request_counts.completed,
                "input_tokens": one.usage.input_tokens,
                "cached_tokens": one.usage.input_tokens_details.cached_tokens,
                "output_tokens": one.usage.output_tokens,
            }


if __name__ == "__main__":
    raise SystemExit(main())
