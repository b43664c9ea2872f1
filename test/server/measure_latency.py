"""Measure what a running batch costs online requests.

    PYTHONPATH=test/helpers python test/server/measure_latency.py --model-path MODEL [FLAG ...]

Sends chat requests of 8 tokens one after another and prints median and 99th percentile of their
latency (seconds): to an idle server, to the same server while a batch of so many lines runs, and
to SGLang's own scheduler that was given the same lines as plain requests at once. (The plugin is
loaded there too, so that a CPU uses the same attention kernels; the policy is SGLang's default.) A
request that takes longer than the limit counts as the limit, and its series ends there. FLAGs go
to both servers, e.g. ``--device cpu --max-total-tokens 16000 --sampling-backend pytorch
--grammar-backend none --disable-cuda-graph --sleep-on-idle`` on a CPU, whose environment this sets.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import orjson
from server_process import ServerProcess, running

from sglang.srt.blendserve.runtime.cpu import defaults as cpu_defaults


def requests(lines: int) -> list[dict[str, Any]]:
    """Return request bodies: short and long prompts, 4 to 24 tokens of answer."""
    return [
        {
            "prompt": f"Item {n}. " + "Tell me more. " * (n % 40),
            "max_tokens": 4 + 4 * (n % 6),
            "temperature": 0,
            "ignore_eos": True,
        }
        for n in range(lines)
    ]


async def latencies(server: ServerProcess, chats: int, limit: float) -> list[float]:
    """Return the seconds that each of ``chats`` requests took."""
    seconds = []
    async with httpx.AsyncClient(timeout=limit) as client:
        for number in range(chats):
            body = {
                "model": "default",
                "messages": [{"role": "user", "content": f"Hello number {number}!"}],
                "max_tokens": 8,
                "ignore_eos": True,
            }
            began = time.monotonic()
            try:
                answer = await client.post(f"{server.url}/v1/chat/completions", json=body)
                answer.raise_for_status()
            except httpx.TimeoutException:
                return [*seconds, limit]
            seconds.append(time.monotonic() - began)
    return seconds


def report(name: str, seconds: list[float], limit: float) -> None:
    """Print one line of the result."""
    ordered = sorted(seconds)
    worst = ordered[max(round(0.99 * len(ordered)) - 1, 0)]
    ended = " (ended at the limit)" if ordered[-1] >= limit else ""
    print(
        f"{name:34} {len(seconds):3} requests  median {statistics.median(ordered):7.2f} s"
        f"  P99 {worst:7.2f} s{ended}",
        flush=True,
    )


async def under_batch(server: ServerProcess, lines: int, chats: int, limit: float) -> None:
    """Measure idle, then with a batch."""
    report("idle", await latencies(server, chats, limit), limit)
    content = b"".join(
        orjson.dumps(
            {"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body}
        )
        + b"\n"
        for n, body in enumerate(requests(lines))
    )
    client = server.client()
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    await asyncio.sleep(20)
    before = client.batches.retrieve(batch.id).request_counts
    began = time.monotonic()
    report(f"batch of {lines} lines", await latencies(server, chats, limit), limit)
    after = client.batches.retrieve(batch.id).request_counts
    assert before is not None
    assert after is not None
    if after.completed == lines:
        print("  the batch ended before the last of these requests: the rate below is too low")
    rate = (after.completed - before.completed) / (time.monotonic() - began)
    print(f"  meanwhile {rate:.2f} lines per second of the batch were answered")


async def under_plain_load(server: ServerProcess, lines: int, chats: int, limit: float) -> None:
    """Measure with the same lines as plain requests, all sent at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        load = [
            asyncio.ensure_future(
                client.post(f"{server.url}/v1/completions", json={"model": "default", **body})
            )
            for body in requests(lines)
        ]
        await asyncio.sleep(20)
        name = f"stock, {lines} plain requests"
        report(name, await latencies(server, chats, limit), limit)
        done = sum(task.done() for task in load)
        print(f"  by then {done} of the plain requests were answered")
        for task in load:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*load, return_exceptions=True)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--chats", type=int, default=20)
    parser.add_argument("--limit", type=float, default=120.0)
    arguments, flags = parser.parse_known_args()
    if "cpu" in flags:
        cpu_defaults.apply_environment()
    command = ["--model-path", arguments.model_path, *flags]
    given = (arguments.lines, arguments.chats, arguments.limit)
    with tempfile.TemporaryDirectory() as folder:
        blend = ["--schedule-policy", "blendserve", "--batch-dir", f"{folder}/batches"]
        with running([*command, *blend], Path(folder) / "log") as server:
            asyncio.run(under_batch(server, *given))
        with running(command, Path(folder) / "log-stock") as server:
            asyncio.run(under_plain_load(server, *given))


if __name__ == "__main__":
    main()
