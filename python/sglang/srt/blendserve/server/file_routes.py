"""The routes ``/v1/files``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from sglang.srt.blendserve.server.file_service import FileService
from sglang.srt.blendserve.server.http import OpenAIRoute
from sglang.srt.blendserve.server.parameters import ListFiles, from_fields, query_schema
from sglang.srt.blendserve.store.objects import DeletedFile, FileObject, Page

_FORM: dict[str, Any] = {
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
                            "minimum": 3600,
                            "maximum": 2592000,
                        },
                    },
                }
            }
        },
    }
}


def file_router(files: FileService) -> APIRouter:
    """Return the routes, served by ``files``."""
    router = APIRouter(prefix="/v1/files", tags=["files"], route_class=OpenAIRoute)

    @router.post("", openapi_extra=_FORM)
    async def upload_file(request: Request) -> FileObject:
        return await files.upload(request.stream(), request.headers.get("content-type", ""))

    @router.get("", openapi_extra=query_schema(ListFiles))
    async def list_files(request: Request) -> Page[FileObject]:
        return await files.list(from_fields(ListFiles, request.query_params))

    @router.get("/{file_id}")
    async def retrieve_file(file_id: str) -> FileObject:
        return await files.get(file_id)

    @router.delete("/{file_id}")
    async def delete_file(file_id: str) -> DeletedFile:
        return await files.delete(file_id)

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
