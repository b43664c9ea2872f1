"""Places in a batch's life where a fault can strike, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from openai.types import Batch
from scripted import ScriptedEngine, Service, jsonl, line

from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.server import batch_run, finalizing

AFTER = 3
"""Requests answered when a batch is held in progress."""

GOOD = [f"good-{n}" for n in range(9)]
INPUT = (
    jsonl([line(name, f"prompt {name}\nüñí\u2028") for name in GOOD[:4]])
    + b"\n{not JSON\r\n"
    + jsonl([line("refused"), line("breaks"), line("elsewhere", url="/v1/embeddings")])
    + jsonl([line(name, f"prompt {name}") for name in GOOD[4:]])
)
TOTAL = len(GOOD) + 4
BAD = {"refused", "breaks", "elsewhere", None}


@dataclass
class Place:
    """A breakpoint: `reached` is set when the batch is there, which waits for `let_go`."""

    name: str
    reached: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    answered: int = 0

    def hold(self) -> None:
        self.reached.set()
        assert self.let_go.wait(30)

    async def script(self, request: BatchLine) -> None:
        """Answer `AFTER` requests; the others wait, if this is the place."""
        if request.custom_id == "breaks":
            raise RuntimeError("a fault in the engine")
        self.answered += 1
        while self.name == "in progress" and self.answered > AFTER and not self.let_go.is_set():
            await asyncio.sleep(0.01)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hold the batch before it is validated, or before its files are written."""
        if self.name != "in progress":
            module, name = {
                "validating": (batch_run, "scan"),
                "finalizing": (finalizing, "write_results"),
            }[self.name]
            work: Callable[..., Any] = getattr(module, name)

            def held(*args: Any, **options: Any) -> Any:
                self.hold()
                return work(*args, **options)

            monkeypatch.setattr(module, name, held)

    async def wait(self, service: Service, batch: Batch) -> None:
        """Wait until the batch is there, with what was answered synced."""
        if self.name != "in progress":
            assert await asyncio.to_thread(self.reached.wait, 30)
            return
        for _ in range(1500):
            batch = await service.client.batches.retrieve(batch.id)
            counts = batch.request_counts
            if (counts.completed, counts.failed) == (AFTER, len(BAD) - 1):  # "refused" waits
                return
            await asyncio.sleep(0.02)
        raise TimeoutError(batch)


async def check(service: Service, batch: Batch, undisturbed: dict[str, Any]) -> set[str]:
    """Check what holds however a batch ended; return the custom_ids of the output file."""
    counts = batch.request_counts
    assert counts.completed + counts.failed == counts.total == TOTAL
    output, errors = await service.result_lines(batch)
    assert (len(output), len(errors)) == (counts.completed, counts.failed)
    assert sorted(map(str, [one["custom_id"] for one in output + errors])) == sorted(
        map(str, [*GOOD, *BAD])
    )
    assert len({one["id"] for one in output + errors}) == TOTAL
    for one in output:
        assert answer_of(one) == undisturbed[one["custom_id"]]
    for _ in range(500):  # the folder goes after the batch has ended
        if not list(service.store._batches.iterdir()):
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("the batch's folder is still there")
    return {one["custom_id"] for one in output}


def answer_of(result: dict[str, Any]) -> bytes:
    """Return a result's bytes without what names the batch it is of."""
    response = {key: value for key, value in result["response"].items() if key != "request_id"}
    return orjson.dumps({**result, "id": None, "response": response})


def engine_for(place: Place) -> ScriptedEngine:
    return ScriptedEngine(place.script, refused=frozenset({"refused"}))
