"""The routes ``/v1/batches``."""

from __future__ import annotations

from fastapi import APIRouter, Request

from sglang.srt.blendserve.server.batch_service import BatchService
from sglang.srt.blendserve.server.http import OpenAIRoute, read_json
from sglang.srt.blendserve.server.parameters import (
    CreateBatch,
    ListBatches,
    from_fields,
    from_json,
    json_body_schema,
    query_schema,
)
from sglang.srt.blendserve.store.objects import BatchObject, Page


def batch_router(batches: BatchService) -> APIRouter:
    """Return the routes, served by ``batches``."""
    router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=OpenAIRoute)

    @router.post("", openapi_extra=json_body_schema(CreateBatch))
    async def create_batch(request: Request) -> BatchObject:
        return await batches.create(from_json(CreateBatch, await read_json(request)))

    @router.get("", openapi_extra=query_schema(ListBatches))
    async def list_batches(request: Request) -> Page[BatchObject]:
        return await batches.list(from_fields(ListBatches, request.query_params))

    @router.get("/{batch_id}")
    async def retrieve_batch(batch_id: str) -> BatchObject:
        return await batches.get(batch_id)

    @router.post("/{batch_id}/cancel")
    async def cancel_batch(batch_id: str) -> BatchObject:
        return await batches.cancel(batch_id)

    return router
