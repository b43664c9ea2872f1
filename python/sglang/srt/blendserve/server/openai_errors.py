"""Errors in OpenAI's form, and the route class that gives every failure that form.

The form is ``{"error": {"message", "type", "param", "code"}}``: ``message`` says what is wrong and
how to put it right, ``param`` names the parameter at fault, ``code`` is a word for programs.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sglang.srt.blendserve.answering.disk_retry import is_storage_failure, reason_of

logger = logging.getLogger(__name__)

MAX_JSON_BYTES = 1 << 20
"""Largest JSON body taken; metadata, the largest thing in one, has at most 16 x 576 characters."""

REQUEST_ID = "blendserve_request_id"
"""Name of a request's id in the ASGI scope."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_NO_OBJECT = {"dict_type", "model_type", "model_attributes_type"}


class _Bound(NamedTuple):
    """How OpenAI says that a number is out of bounds; ``bound`` is pydantic's name of it."""

    bound: str
    side: str
    sign: str
    code: str


_BOUNDS = {
    "greater_than_equal": _Bound("ge", "below minimum", ">=", "integer_below_min_value"),
    "less_than_equal": _Bound("le", "above maximum", "<=", "integer_above_max_value"),
}
_NOT_JSON = "The body is not valid JSON. Send one JSON object."

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ErrorDetail(BaseModel):
    """What is wrong with a request, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The JSON body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status code.
        message: what is wrong and how to put it right.
        param: the parameter at fault, None if no single one is.
        code: a word for programs, None where OpenAI has none.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def response(self) -> JSONResponse:
        """Return the HTTP answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        detail = ErrorDetail(
            message=self.message,
            type=_TYPES.get(self.status, kind),
            param=self.param,
            code=self.code,
        )
        return JSONResponse(ErrorBody(error=detail).model_dump(), status_code=self.status)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return a 400: the request is not one that can be carried out."""
    return ApiError(400, message, param=param, code=code)


def not_valid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return a 400 that names the first parameter at fault.

    Args:
        errors: what pydantic found wrong, at least one; ``loc`` begins with the parameter's name.
    """
    first = errors[0]
    param = ".".join(str(part) for part in first["loc"] if part != "[key]") or None
    kind = first["type"]
    if kind == "json_invalid" or (kind == "missing" and param is None):
        return invalid(_NOT_JSON, code="invalid_json")
    if kind == "missing":
        return invalid(
            f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
        )
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if kind in _BOUNDS and isinstance(given := first.get("input"), (int, str)):
        bound, (side, sign, code) = first["ctx"][_BOUNDS[kind].bound], _BOUNDS[kind][1:]
        return invalid(
            f"Invalid '{param}': integer {side} value. Expected a value {sign} {bound}, but got "
            f"{str(given)[:20]} instead.",
            param,
            code,
        )
    reason = first["msg"].removeprefix("Value error, ")
    if kind in _NO_OBJECT:
        reason = "Input should be an object"
    where = "Invalid body" if param is None else f"Invalid value for '{param}'"
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(f"{where}: {reason}", param, code)


def storage_failed(error: Exception) -> ApiError:
    """Return the 507 for a full or read-only disk; nothing was stored."""
    return ApiError(
        507,
        f"The batch directory cannot be written: {reason_of(error)}. Nothing was stored; make room "
        "or make it writable, then try again.",
        code="storage_unavailable",
    )


def shortened(text: str) -> str:
    """Return an id that a client sent, cut to 80 characters, to be shown in a message."""
    return text if len(text) <= 80 else text[:80] + "..."


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's body, whatever the application's own handlers do.

    A JSON body is read before FastAPI asks for it: bounded, with an error of its own for another
    content type.
    """

    def get_route_handler(self) -> _Handler:
        """Return the handler, with its exceptions turned into answers."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            bounded = _BoundedRequest(request.scope, request.receive)
            try:
                if self.body_field is not None:
                    await bounded.body()
                return await handle(bounded)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody is there to read it
            except Exception as error:
                return _as_api_error(request, error).response()

        return answer


class _BoundedRequest(Request):
    """A request whose JSON body may be `MAX_JSON_BYTES` long. `stream` is as long as it is.

    FastAPI's own ``max_body_size`` answers a body of declared length with plain text, past every
    error handler (findings/fastapi_body_limit_two_answers.sh); here all errors have OpenAI's form.
    """

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise invalid(
                    "Send the parameters as a JSON object with Content-Type: application/json."
                )
            body = bytearray()
            async for chunk in self.stream():
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    raise ApiError(413, f"The body is larger than {MAX_JSON_BYTES} bytes.")
            self._body = bytes(body)
        return self._body


def _as_api_error(request: Request, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        # FastAPI puts where the parameter was before its name: "query", "body", "path".
        # The place of a JSON error is a position in the text, not a name.
        return not_valid([{**one, "loc": one["loc"][1:]} for one in error.errors()])
    if isinstance(error, HTTPException) and error.status_code == 400:
        return invalid(_NOT_JSON, code="invalid_json")  # nested too deeply, or not UTF-8
    if isinstance(error, (OSError, sqlite3.Error)) and is_storage_failure(error):
        logger.error("%s %s (%s): %s", request.method, request.url.path, _id(request), error)
        return storage_failed(error)
    where = request.method, request.url.path, _id(request)
    logger.error("%s %s (%s) failed", *where, exc_info=error)
    return ApiError(500, f"The server had an error; its log says more, at {_id(request)}.")


def _id(request: Request) -> str:
    """Return the request's id, which the answer shows as ``x-request-id`` (`front`)."""
    return str(request.scope.get(REQUEST_ID, "no id"))
