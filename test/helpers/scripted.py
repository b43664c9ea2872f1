"""The service without a model: an engine that follows a script, and the client to talk to it.

Fault injection and the HTTP contract need neither tokens nor seconds; what they must not be is
different from the real thing, so everything but the engine is: store, runner, routes, client.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
from fastapi import FastAPI
from openai import AsyncOpenAI
from openai.types import Batch

from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint
from sglang.srt.blendserve.job_ids import job_prefix
from sglang.srt.blendserve.pool.pool_request import Tokens
from sglang.srt.blendserve.server.batch_settings import BatchSettings
from sglang.srt.blendserve.server.mount import mount
from sglang.srt.blendserve.server.plan_view import OnlineView, PlanView
from sglang.srt.blendserve.server.runner import Runner
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.store.directory import Store
from sglang.srt.blendserve.store.objects import job_of
from sglang.srt.blendserve.store.tally import Tally

MODEL = "scripted"

Script = Callable[[BatchLine], Awaitable[None]]


async def at_once(line: BatchLine) -> None:
    """Answer without waiting."""


class Held:
    """An engine's script that lets as many lines end as it is told, and notes who comes in."""

    def __init__(self, may_end: int = 0) -> None:
        self.came: list[str] = []
        self._may_end = asyncio.Semaphore(may_end)

    async def __call__(self, line: BatchLine) -> None:
        self.came.append(line.custom_id)
        await self._may_end.acquire()

    def let_end(self, lines: int) -> None:
        """Let so many more lines end."""
        for _ in range(lines):
            self._may_end.release()


@dataclass
class ScriptedEngine:
    """Answers each prompt with itself, after whatever ``script`` awaits."""

    script: Script = at_once
    executed: Counter[str] = field(default_factory=Counter)
    prompts: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    refused: frozenset[str] = frozenset()
    ready: bool = True
    stopping: bool = False
    shown_plan: PlanView | None = None
    shown_online: OnlineView | None = None
    most_at_once: int = 0
    _running: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    _aborted: set[str] = field(default_factory=set)

    model = MODEL
    models = frozenset((MODEL, "default"))
    endpoints = frozenset((Endpoint.CHAT, Endpoint.COMPLETIONS))

    async def execute(
        self,
        line: BatchLine,
        rid: str,
        prompts: Sequence[Tokens] | None = None,
        engine: int | None = None,
    ) -> Answer:
        self.executed[line.custom_id] += 1
        self.prompts[line.custom_id].append(prompts)
        work = asyncio.ensure_future(self.script(line))
        self._running[rid] = work
        self.most_at_once = max(self.most_at_once, len(self._running))
        try:
            await asyncio.wait({work})
        finally:
            del self._running[rid]
            work.cancel()
        if work.cancelled():
            body = {"error": {"message": "aborted"}}
            return Answer(Response(status_code=503, request_id=rid, body=body),
                          Observation(aborted="aborted"))  # fmt: skip
        work.result()
        if line.custom_id in self.refused:
            body = {"error": {"message": f"Line {line.line}: too long", "code": 400}}
            return Answer(Response(status_code=400, request_id=rid, body=body), Observation())
        prompt = str(line.body.get("prompt", line.body.get("messages")))
        content = {"object": "text_completion", "choices": [{"text": prompt}], "usage": {}}
        seen = Observation(prompt_tokens=len(prompt), completion_tokens=2, cached_tokens=1)
        return Answer(Response(status_code=200, request_id=rid, body=content), seen)

    gpus = 1

    def busy_gpus(self) -> int:
        return self.gpus

    def weigh(self, tally: Tally) -> float:
        return float(tally.output_tokens)

    def work(self, tally: Tally) -> float | None:
        return None

    def standings(self) -> Sequence[Any]:
        return ()

    async def begin(self) -> None:
        """There is nothing to start."""

    async def close(self) -> None:
        """There is nothing to end."""

    def abort(self, job: str) -> None:
        for rid, work in self._running.items():
            if rid.startswith(job_prefix(job)):
                work.cancel()

    planning = None

    async def plan(self) -> PlanView | None:
        return self.shown_plan

    async def online(self) -> OnlineView | None:
        return self.shown_online

    async def watch(self, busy: Callable[[], bool]) -> None:
        await asyncio.Event().wait()


@dataclass
class Service:
    """A running service and its client."""

    app: FastAPI
    store: Store
    runner: Runner
    engine: ServedEngine
    client: AsyncOpenAI
    http: httpx.AsyncClient

    async def submit(self, lines: list[dict[str, Any]] | bytes, **options: Any) -> Batch:
        """Upload the lines and create a batch of them."""
        content = lines if isinstance(lines, bytes) else jsonl(lines)
        file = await self.client.files.create(file=("in.jsonl", content), purpose="batch")
        given = {"endpoint": "/v1/completions", "completion_window": "24h"} | options
        return await self.client.batches.create(input_file_id=file.id, **given)

    async def finish(self, batch_id: str) -> Batch:
        """Wait until the batch is in a terminal state."""
        for _ in range(3000):
            batch = await self.client.batches.retrieve(batch_id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.02)
        raise TimeoutError(batch.status)

    async def result_lines(self, batch: Batch) -> tuple[list[Any], list[Any]]:
        """Return the parsed lines of the output and the error file."""
        return (
            await self.content(batch.output_file_id),
            await self.content(batch.error_file_id),
        )

    async def content(self, file_id: str | None) -> list[Any]:
        """Return the parsed lines of a file, none if there is no file."""
        if file_id is None:
            return []
        content = (await self.client.files.content(file_id)).content
        return [orjson.loads(line) for line in content.splitlines()]


@asynccontextmanager
async def serve(
    directory: Path,
    engine: ScriptedEngine | None = None,
    *,
    prepare: Callable[[FastAPI], None] = lambda _: None,
    api_key: str | None = None,
    **limits: Any,
) -> AsyncIterator[Service]:
    """Run the service on ``directory``; stop it as a server that shuts down does.

    ``prepare`` gets the application before the service is added to it. ``api_key``: the server's,
    which SGLang's own middleware asks for.
    """
    engine = engine or ScriptedEngine()
    store = Store(directory)
    app = FastAPI()
    prepare(app)
    settings = BatchSettings(directory, **limits)
    runner = mount(app, store, engine, settings, users=settings.users(), api_key=api_key)
    if api_key is not None:
        from sglang.srt.utils.auth import add_api_key_middleware

        add_api_key_middleware(app, api_key=api_key, admin_api_key=None)
    http = httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
        base_url="http://test",
    )
    client = AsyncOpenAI(
        api_key=api_key or "none",
        base_url="http://test/v1",
        http_client=http,
        max_retries=0,
        _strict_response_validation=True,
    )
    async with app.router.lifespan_context(app), http:
        yield Service(app, store, runner, engine, client, http)


def line(custom_id: str, prompt: str = "hello", **changes: Any) -> dict[str, Any]:
    """Return a request line."""
    given = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": MODEL, "prompt": prompt},
    }
    return given | changes


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    """Return lines as the content of a file."""
    return b"".join(orjson.dumps(one) + b"\n" for one in lines)


def job(batch: Batch) -> str:
    """Return the name of the job that runs a batch."""
    return job_of(batch.id)
