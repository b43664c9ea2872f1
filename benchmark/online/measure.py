"""Measure what a batch costs online requests, and what they cost the batch.

    python benchmark/online/measure.py --model-path MODEL --json out.json

Chats (streamed, greedy, at random times: Poisson arrivals of so many a second) go to one server:

- ``idle``: one after the other, nothing else runs. Its medians are what the targets are multiples
  of. ``idle_<load>``: no batch; what chats do to each other at that load.
- ``batch_alone``: a batch of the batch API, and no chats.
- ``beside_<load>``: chats beside that batch, with ``--blendserve-online-ttft`` and ``-tpot`` at the
  targets (in the engine: what the idle chats needed outside of it is taken off).
- ``stock_<load>``: SGLang's own scheduler, without the policy, with the batch's lines as plain
  requests, as many at once as the batch service has in the engine.

For each case: ``ttft_p50_seconds``, ``ttft_p95_seconds``, ``tpot_p95_seconds`` (per chat, of the
tokens after the first), ``batch_lines_per_second``, and the ratios to idle and to the batch alone.
Lines are counted by the tokens that the engine computes of them, prompts and answers, over those of
one line: they end in waves. The file is written after each case; what is in it already is not
measured again. Flags of SGLang's after ``--``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from openai import AsyncOpenAI

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test" / "helpers"))
from server_process import ServerProcess, running

from sglang.srt.blendserve.runtime.cpu import defaults

WORDS = ("river", "stone", "window", "paper", "garden", "engine", "letter", "summer", "market")
CHAT_TOKENS, LINE_TOKENS = 12, 32
LINE_PROMPT = 78
"""Tokens of a line's prompt with SmolLM2's tokenizer, in the mean."""


def text(rng: random.Random, words: int) -> str:
    """Return so many words in a random order."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def line(number: int) -> dict[str, Any]:
    """Return the body of a line of the batch: some 80 tokens of prompt, 32 of answer."""
    return {
        "model": "default",
        "prompt": f"Item {number}: {text(random.Random(number), 70)}",
        "max_tokens": LINE_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }


class Chat:
    """One online request and its times, seconds."""

    def __init__(self, client: AsyncOpenAI, number: int) -> None:
        self._client, self._number = client, number
        self.ttft = self.tpot = float("nan")

    async def run(self) -> None:
        """Ask and note when tokens come."""
        words = text(random.Random(-1 - self._number), 60)
        began = time.monotonic()
        stream = await self._client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": f"Note {self._number}. {words}"}],
            max_tokens=CHAT_TOKENS,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        stamps = [
            time.monotonic()
            async for part in stream
            if part.choices and part.choices[0].delta.content
        ]
        self.ttft = stamps[0] - began
        self.tpot = (stamps[-1] - stamps[0]) / (CHAT_TOKENS - 1)


async def chats(
    server: ServerProcess, number: int, load: float, first: int, limit: float
) -> list[Chat]:
    """Send ``number`` chats at ``load`` a second; return those that were answered within limit."""
    rng = random.Random(number + first)
    client = AsyncOpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0, timeout=limit)
    made = [Chat(client, first + at) for at in range(number)]
    tasks = []
    for one in made:
        await asyncio.sleep(rng.expovariate(load))
        tasks.append(asyncio.ensure_future(one.run()))
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            print(f"  a chat: {type(outcome).__name__}", flush=True)
    await client.close()
    return made


def figures(made: Sequence[Chat]) -> dict[str, Any]:
    """Return percentiles; chats without an answer in time count as infinitely late."""
    ttft = np.nan_to_num([one.ttft for one in made], nan=np.inf)
    tpot = np.nan_to_num([one.tpot for one in made], nan=np.inf)
    return {
        "chats": len(made),
        "unanswered": int(np.isinf(ttft).sum()),
        "ttft_p50_seconds": float(np.quantile(ttft, 0.5, method="lower")),
        "ttft_p95_seconds": float(np.quantile(ttft, 0.95, method="lower")),
        "tpot_p50_seconds": float(np.quantile(tpot, 0.5, method="lower")),
        "tpot_p95_seconds": float(np.quantile(tpot, 0.95, method="lower")),
    }


@asynccontextmanager
async def plain_lines(server: ServerProcess, at_once: int) -> AsyncIterator[list[int]]:
    """Keep ``at_once`` lines in the server as plain requests; gives their count as they end."""
    done, numbers = [0], iter(range(10**9))

    async def worker(client: httpx.AsyncClient) -> None:
        while True:
            body = line(next(numbers))
            (await client.post(f"{server.url}/v1/completions", json=body)).raise_for_status()
            done[0] += 1

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        tasks = [asyncio.ensure_future(worker(client)) for _ in range(at_once)]
        try:
            yield done
        finally:
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)


class Measurement:
    """The cases, one after the other, in one file."""

    def __init__(self, arguments: argparse.Namespace, flags: list[str]) -> None:
        self.given, self.path = arguments, Path(arguments.json)
        self.cases: dict[str, Any] = {}
        if self.path.exists():
            self.cases = json.loads(self.path.read_text())["cases"]
        self.command = ["--model-path", arguments.model_path, *flags]
        if not defaults.has_accelerator():
            defaults.apply_environment()
            self.command += defaults.server_flags(arguments.model_path, self.command)

    def note(self, name: str, found: dict[str, Any]) -> None:
        """Write a case down, with its ratios."""
        idle, alone = self.cases.get("idle"), self.cases.get("batch_alone")
        if idle is not None and "ttft_p95_seconds" in found:
            for key in ("ttft", "tpot"):
                found[f"{key}_p95_to_idle"] = (
                    found[f"{key}_p95_seconds"] / idle[f"{key}_p50_seconds"]
                )
        if alone is not None and "batch_lines_per_second" in found:
            found["batch_to_alone"] = (
                found["batch_lines_per_second"] / alone["batch_lines_per_second"]
            )
        self.cases[name] = found
        about = {
            "chat_tokens": CHAT_TOKENS,
            "line_tokens": LINE_TOKENS,
            "targets": {"ttft": self.given.ttft, "tpot": self.given.tpot},
            "flags": self.command[2:],
        }
        self.path.write_text(json.dumps({**about, "cases": self.cases}, indent=1) + "\n")
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}
        print(f"{name}: {shown}", flush=True)

    async def chat_case(self, server: ServerProcess, load: float, first: int) -> dict[str, Any]:
        return figures(await chats(server, self.given.chats, load, first, self.given.limit))

    async def idle(self, server: ServerProcess) -> None:
        """Measure without a batch: one chat at a time, then each load."""
        await chats(server, 3, 2.0, 10_000, self.given.limit)  # the first are slower
        if "idle" not in self.cases:
            alone: list[Chat] = []
            for number in range(min(self.given.chats, 30)):
                alone += await chats(server, 1, 100.0, 15_000 + number, self.given.limit)
            engine = online_state(server)
            found = figures(alone)
            # What the targets of the engine do not see: HTTP, tokenizer, detokenizer.
            outside = found["ttft_p50_seconds"] - engine["ttft_p50"]
            self.note("idle", {**found, "outside_seconds": max(outside, 0.0)})
        for number, load in enumerate(self.given.loads):
            if f"idle_{load:g}" not in self.cases:
                found = await self.chat_case(server, load, 20_000 + 1000 * number)
                self.note(f"idle_{load:g}", found)

    async def batch(self, server: ServerProcess) -> None:
        """Measure the batch alone, then with chats at each load."""
        lines = b"".join(
            json.dumps(
                {"custom_id": f"{n}", "method": "POST", "url": "/v1/completions", "body": line(n)}
            ).encode()
            + b"\n"
            for n in range(self.given.lines)
        )
        client = server.client()
        file = client.files.create(file=("lines.jsonl", lines), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )

        def completed() -> int:
            counts = client.batches.retrieve(batch.id).request_counts
            return 0 if counts is None else counts.completed

        while not completed():
            await asyncio.sleep(1)
        await asyncio.sleep(self.given.settle)
        if "batch_alone" not in self.cases:
            meter = Meter(server)
            await asyncio.sleep(self.given.seconds)
            self.note("batch_alone", meter.rate())
        for number, load in enumerate(self.given.loads):
            if f"beside_{load:g}" in self.cases:
                continue
            await chats(server, 3, load, 50_000, self.given.limit)
            meter, was = Meter(server), online_state(server)
            found = await self.chat_case(server, load, 20_000 + 1000 * number)
            found |= meter.rate()
            now = online_state(server)
            left = now["left_seconds"] - was["left_seconds"]
            used = now["used_seconds"] - was["used_seconds"]
            found["allowed_seconds"], found["used_seconds"] = left, used
            found["allowed_used"] = used / left if left > 1 else None  # nothing was allowed
            found["parked"] = now["parked_in_all"] - was["parked_in_all"]
            found["engine"] = {k: v for k, v in now.items() if k.startswith(("ttft", "tpot"))}
            self.note(f"beside_{load:g}", found)
            if completed() >= self.given.lines:
                raise SystemExit("the batch has ended: give more --lines")
        await asyncio.sleep(2)
        meter = Meter(server)
        await asyncio.sleep(self.given.settle)
        self.note("batch_after", meter.rate())
        client.batches.cancel(batch.id)

    async def stock(self, server: ServerProcess) -> None:
        async with plain_lines(server, self.given.at_once) as done:
            await asyncio.sleep(self.given.settle)
            for number, load in enumerate(self.given.loads):
                if f"stock_{load:g}" in self.cases:
                    continue
                before, began = done[0], time.monotonic()
                found = await self.chat_case(server, load, 20_000 + 1000 * number)
                rate = (done[0] - before) / (time.monotonic() - began)
                self.note(f"stock_{load:g}", {**found, "batch_lines_per_second": rate})

    def run(self) -> None:
        """Start each server that has cases left."""
        blend = ["--schedule-policy", "blendserve", "--enable-metrics"]
        with tempfile.TemporaryDirectory() as folder:
            if {"idle", *(f"idle_{x:g}" for x in self.given.loads)} - self.cases.keys():
                with running([*self.command, *blend], Path(folder) / "idle.log") as server:
                    asyncio.run(self.idle(server))
            idle = self.cases["idle"]
            beside = {"batch_alone", "batch_after", *(f"beside_{x:g}" for x in self.given.loads)}
            if beside - self.cases.keys():
                targets = []
                for name in ("ttft", "tpot"):
                    target = getattr(self.given, name) * idle[f"{name}_p50_seconds"]
                    target -= idle["outside_seconds"] if name == "ttft" else 0.0
                    targets += [f"--blendserve-online-{name}", f"{1000 * target:.1f}"]
                batches = ["--batch-dir", f"{folder}/batches", *targets]
                log = Path(folder) / "beside.log"
                with running([*self.command, *blend, *batches], log) as server:
                    asyncio.run(self.batch(server))
            if {f"stock_{x:g}" for x in self.given.loads} - self.cases.keys():
                with running(self.command, Path(folder) / "stock.log") as server:
                    asyncio.run(self.stock(server))


class Meter:
    """What the engine computes of the batch from now on."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._before, self._began = self._tokens(), time.monotonic()

    def rate(self) -> dict[str, float]:
        """Return lines a second since it was made."""
        passed = time.monotonic() - self._began
        tokens = (self._tokens() - self._before) / passed
        return {"batch_lines_per_second": tokens / (LINE_PROMPT + LINE_TOKENS)}

    def _tokens(self) -> float:
        text = httpx.get(f"{self._server.url}/metrics", timeout=60).text
        return sum(
            float(row.rpartition(" ")[2])
            for row in text.splitlines()
            if re.match(r"sglang:blendserve_(prefill|decode)_tokens_total", row)
            and 'side="online"' not in row
        )


def online_state(server: ServerProcess) -> dict[str, Any]:
    """Return what the scheduler says of its online requests."""
    info = httpx.get(f"{server.url}/get_server_info", timeout=60).json()
    state: dict[str, Any] = info["internal_states"][0]["blendserve"]["online"]
    return state


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--json", default="out/online.json")
    parser.add_argument("--chats", type=int, default=200, help="chats in each case")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="chats/s")
    parser.add_argument("--ttft", type=float, default=1.3, help="target, times idle")
    parser.add_argument("--tpot", type=float, default=2.0, help="target, times idle")
    parser.add_argument("--lines", type=int, default=20_000, help="lines of the batch")
    parser.add_argument("--at-once", type=int, default=64, help="plain requests at once (stock)")
    parser.add_argument("--seconds", type=float, default=60, help="for the batch alone")
    parser.add_argument("--settle", type=float, default=20, help="seconds before the first figure")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one chat at most")
    own, flags = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, flags = own[:at], own[at + 1 :]
    arguments = parser.parse_args(own)
    Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
    Measurement(arguments, flags).run()


if __name__ == "__main__":
    main()
