"""The batch service as a whole: store, runner, services and routes on one FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from sglang.srt.blendserve.server.activity import Gauges
from sglang.srt.blendserve.server.batch_service import BatchService
from sglang.srt.blendserve.server.batch_settings import BatchSettings
from sglang.srt.blendserve.server.file_service import FileService
from sglang.srt.blendserve.server.front import stand_in_front
from sglang.srt.blendserve.server.routes import batch_router, file_router
from sglang.srt.blendserve.server.runner import Runner
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.server.status_page import page_router
from sglang.srt.blendserve.server.users import Users
from sglang.srt.blendserve.server.webhooks import WebhookSender, secret_in
from sglang.srt.blendserve.store.directory import Store


def mount(
    app: FastAPI,
    store: Store,
    engine: ServedEngine,
    settings: BatchSettings,
    *,
    metrics: bool = False,
    users: Users | None = None,
    api_key: str | None = None,
) -> Runner:
    """Add the batch API to ``app``; call it before the application starts.

    The runner starts after the application and stops before it; then the store is closed.

    Args:
        metrics: also keep Prometheus gauges, in SGLang's registry.
        users: who has a key of its own; None: nobody.
        api_key: the server's, by which requests of users go on to SGLang.
    """
    users = users or Users()
    runner = Runner(store, engine, settings, users)
    files = FileService(store, settings)
    rules = settings.webhook_rules
    secret = secret_in(settings.webhook_secret) if rules.hosts else ""
    batches = BatchService(store, files, engine, runner, rules, users)
    app.include_router(file_router(files))
    app.include_router(batch_router(batches))
    app.include_router(page_router(batches, runner, engine))
    stand_in_front(app, settings.origins, users, api_key)
    if metrics:
        runner.on_activity(Gauges().show)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def with_runner(application: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(application) as state, AsyncExitStack() as at_end:
            # The store is closed whatever fails: its connection would keep the process alive.
            at_end.push_async_callback(store.close)
            at_end.push_async_callback(engine.close)
            await engine.begin()
            at_end.push_async_callback(runner.stop)
            await runner.start()
            if rules.hosts:
                await at_end.enter_async_context(WebhookSender(store, rules, secret))
            yield state

    app.router.lifespan_context = with_runner
    return runner
