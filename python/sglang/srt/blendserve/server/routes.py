"""The routes ``/v1/files`` and ``/v1/batches``; FastAPI checks their parameters."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse

from sglang.srt.blendserve.server.batch_service import BatchService
from sglang.srt.blendserve.server.file_service import FileService
from sglang.srt.blendserve.server.openai_errors import ErrorBody, OpenAIRoute
from sglang.srt.blendserve.server.parameters import (
    LONGEST_KEPT,
    SHORTEST_KEPT,
    ChangeBatch,
    CreateBatch,
    ListBatches,
    ListFiles,
    ReadResults,
)
from sglang.srt.blendserve.server.partial_results import ErrorKinds
from sglang.srt.blendserve.store.objects import BatchObject, DeletedFile, FileObject, ListPage

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What is wrong with the request."}
}

_UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": SHORTEST_KEPT,
                            "maximum": LONGEST_KEPT,
                        },
                    },
                }
            }
        },
    }
}
"""The form of an upload, which `upload` reads and FastAPI does not."""


def file_router(files: FileService) -> APIRouter:
    """Return the routes of files, served by ``files``."""
    router = APIRouter(
        prefix="/v1/files", tags=["files"], route_class=OpenAIRoute, responses=_ERRORS
    )

    @router.post("", openapi_extra=_UPLOAD_FORM)
    async def upload_file(request: Request) -> FileObject:
        return await files.upload(request.stream(), request.headers.get("content-type", ""))

    @router.get("")
    async def list_files(query: Annotated[ListFiles, Query()]) -> ListPage[FileObject]:
        return await files.list(query)

    @router.get("/{file_id}")
    async def retrieve_file(file_id: str) -> FileObject:
        return await files.get(file_id)

    @router.delete("/{file_id}")
    async def delete_file(file_id: str) -> DeletedFile:
        return await files.delete(file_id)

    @router.head("/{file_id}/content", response_class=FileResponse, include_in_schema=False)
    @router.get("/{file_id}/content", response_class=FileResponse)
    async def retrieve_file_content(file_id: str) -> FileResponse:
        file, path = await files.content(file_id)
        # An attachment of no type a browser would run.
        return FileResponse(
            path,
            media_type="application/octet-stream",
            filename=file.filename,
            headers={"X-Content-Type-Options": "nosniff"},
        )

    return router


def batch_router(batches: BatchService) -> APIRouter:
    """Return the routes of batches, served by ``batches``."""
    router = APIRouter(
        prefix="/v1/batches", tags=["batches"], route_class=OpenAIRoute, responses=_ERRORS
    )

    @router.post("")
    async def create_batch(
        wanted: CreateBatch,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> BatchObject:
        return await batches.create(wanted, idempotency_key)

    @router.get("")
    async def list_batches(query: Annotated[ListBatches, Query()]) -> ListPage[BatchObject]:
        return await batches.list(query)

    @router.get("/{batch_id}")
    async def retrieve_batch(batch_id: str) -> BatchObject:
        return await batches.get(batch_id)

    @router.post("/{batch_id}")
    async def change_batch(batch_id: str, wanted: ChangeBatch) -> BatchObject:
        return await batches.change(batch_id, wanted)

    @router.get("/{batch_id}/results", response_class=Response)
    async def read_results(batch_id: str, query: Annotated[ReadResults, Query()]) -> Response:
        page, status = await batches.results(batch_id, query)
        headers = {
            "X-Next-After": str(page.after),
            "X-Batch-Status": status,
            "X-Complete": "false",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        return Response(page.lines, media_type="application/jsonl", headers=headers)

    @router.get("/{batch_id}/errors")
    async def read_errors(batch_id: str) -> ErrorKinds:
        return await batches.errors(batch_id)

    @router.post("/{batch_id}/retry")
    async def retry_batch(
        batch_id: str,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> BatchObject:
        return await batches.retry(batch_id, idempotency_key)

    @router.post("/{batch_id}/cancel")
    async def cancel_batch(batch_id: str) -> BatchObject:
        return await batches.cancel(batch_id)

    return router
