"""What all routes of the batch API share: bounded bodies, and errors in OpenAI's form."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from sglang.srt.blendserve.answering.disk_retry import is_storage_failure
from sglang.srt.blendserve.server.api_errors import ApiError, invalid, storage_failed

logger = logging.getLogger(__name__)

MAX_JSON_BYTES = 1 << 20
"""Largest JSON body taken; metadata, the largest thing in one, has at most 16 x 576 characters."""

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's body, whatever the application's own handlers do."""

    def get_route_handler(self) -> _Handler:
        """Return the handler, with its exceptions turned into answers."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ApiError as error:
                return JSONResponse(error.body(), status_code=error.status)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody is there to read it
            except (OSError, sqlite3.Error) as error:
                if not is_storage_failure(error):
                    return _broken(request, error)
                logger.error("%s %s: %s", request.method, request.url.path, error)
                failure = storage_failed(error)
                return JSONResponse(failure.body(), status_code=failure.status)
            except Exception as error:
                return _broken(request, error)

        return answer


async def read_json(request: Request) -> bytes:
    """Return the body of a request that carries JSON.

    Raises:
        ApiError: 400, another content type; 413, larger than `MAX_JSON_BYTES`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise invalid("Send the parameters as a JSON object with Content-Type: application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise ApiError(413, f"The body is larger than {MAX_JSON_BYTES} bytes.")
    return bytes(body)


def _broken(request: Request, error: Exception) -> Response:
    logger.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    failure = ApiError(500, "The server had an error; its log says more.")
    return JSONResponse(failure.body(), status_code=500)
