"""Errors of the HTTP API itself, in OpenAI's form: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.answering.disk_retry import reason_of

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


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

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return a 400: the request is not one that can be carried out."""
    return ApiError(400, message, param=param, code=code)


def no_such_file(file_id: str) -> ApiError:
    """Return the 404 for a file id that names nothing."""
    return ApiError(404, f"No such File object: {_short(file_id)}", param="id")


def no_such_batch(batch_id: str) -> ApiError:
    """Return the 404 for a batch id that names nothing."""
    return ApiError(404, f"No batch found with id '{_short(batch_id)}'.", param="batch_id")


def storage_failed(error: OSError | Exception) -> ApiError:
    """Return the 507 for a full or read-only disk; nothing was stored."""
    return ApiError(
        507,
        f"The batch directory cannot be written: {reason_of(error)}. Nothing was stored; make room "
        "or make it writable, then try again.",
        code="storage_unavailable",
    )


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
