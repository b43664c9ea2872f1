"""The pages ``/batches`` and ``/batches/ID``: what the service does, for a person to look at."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from tqdm import tqdm

from sglang.srt.blendserve.server import plan_view
from sglang.srt.blendserve.server.batch_service import BatchService
from sglang.srt.blendserve.server.openai_errors import OpenAIRoute
from sglang.srt.blendserve.server.parameters import ListBatches
from sglang.srt.blendserve.server.runner import Runner
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.store.directory import now
from sglang.srt.blendserve.store.objects import TERMINAL, BatchObject

REFRESH_SECONDS = 5


def page_router(batches: BatchService, runner: Runner, engine: ServedEngine) -> APIRouter:
    """Return the routes of the pages."""
    router = APIRouter(route_class=OpenAIRoute, include_in_schema=False)
    pages = Environment(
        loader=PackageLoader("sglang.srt.blendserve.server", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["time"] = _time
    pages.filters["duration"] = tqdm.format_interval
    pages.filters["latency"] = _latency
    template, one = pages.get_template("batches.html"), pages.get_template("batch.html")

    @router.get("/batches", response_class=HTMLResponse)
    async def show_batches(query: Annotated[ListBatches, Query()]) -> HTMLResponse:
        listed = await batches.list(query)
        everything = None if engine.planning is None else await engine.planning.view()
        plan = everything or await engine.plan()
        nonce = secrets.token_urlsafe(16)
        html = template.render(
            model=engine.model,
            batches=listed.data,
            older=listed.last_id if listed.has_more else None,
            terminal=TERMINAL,
            activity=await runner.activity(),
            plan=plan,
            online=await engine.online(),
            over_all=everything is not None,
            left={batch.id: runner.seconds_left(batch.id) for batch in listed.data},
            bars=plan_view.bars(plan.density) if plan else [],
            picture=(plan_view.WIDTH, plan_view.HEIGHT),
            refresh=REFRESH_SECONDS,
            nonce=nonce,
        )
        return HTMLResponse(html, headers=_headers(nonce))

    @router.get("/batches/{batch_id}", response_class=HTMLResponse)
    async def show_batch(batch_id: str) -> HTMLResponse:
        batch, kinds = await batches.get(batch_id), await batches.errors(batch_id)
        nonce = secrets.token_urlsafe(16)
        html = one.render(
            batch=batch,
            kinds=kinds,
            stamps=[(name, stamp) for name, stamp in _stamps(batch) if stamp is not None],
            seconds=_seconds(batch),
            refresh=None if batch.status in TERMINAL else REFRESH_SECONDS,
            nonce=nonce,
        )
        return HTMLResponse(html, headers=_headers(nonce))

    return router


def _stamps(batch: BatchObject) -> list[tuple[str, int | None]]:
    """When a batch entered its states, as far as it has."""
    names = ("created", "in_progress", "finalizing", "cancelling", *sorted(TERMINAL))
    return [(name.replace("_", " "), getattr(batch, f"{name}_at")) for name in names]


def _seconds(batch: BatchObject) -> float | None:
    """How long a batch has been worked on, None if not at all."""
    if batch.in_progress_at is None:
        return None
    ends = [getattr(batch, f"{name}_at") for name in ("finalizing", *sorted(TERMINAL))]
    end = min((one for one in ends if one is not None), default=now())
    return max(end - batch.in_progress_at, 1)


def _headers(nonce: str) -> dict[str, str]:
    """Nothing but this page's own style is let in, and no other page may frame it."""
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _latency(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _time(seconds: int | None) -> str:
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
