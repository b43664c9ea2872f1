"""The outermost layer of the server's application, in front of SGLang's own middleware.

- Every answer of our routes has an ``x-request-id``; the log names it where something failed.
- Our routes answer pages of other origins only if they are allowed (``--batch-allow-origins``).
  SGLang itself allows all origins, so that any page a person looks at could read and cancel the
  batches of a server on that person's machine.
- A user's key (`users`) stands for the server's own on our routes and on those that ask the model
  something, and nowhere else: what it asks for is answered as that user's.
- ``POST /abort_request`` is marked as what a client asks for (`online_ids`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang.srt.blendserve.server.online_ids import asked_by_client
from sglang.srt.blendserve.server.openai_errors import REQUEST_ID, ApiError
from sglang.srt.blendserve.server.users import Users, asked_by

_OURS = ("/v1/files", "/v1/batches", "/batches")
_ABORT = "/abort_request"

_ASKING = (
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/score",
    "/v1/rerank",
    "/v1/classify",
    "/v1/tokenize",
    "/v1/detokenize",
)
"""SGLang's routes that users may use, and nothing below them: stored responses are everybody's."""


def stand_in_front(
    app: FastAPI,
    allowed_origins: Iterable[str],
    users: Users | None = None,
    api_key: str | None = None,
) -> None:
    """Put a `Front` around everything that ``app`` does, also around middleware added later.

    Args:
        app: an application that has not started.
        allowed_origins: as ``https://host:port``, or ``*`` for any.
        users: who has a key of its own.
        api_key: the server's own.
    """
    build, origins = app.build_middleware_stack, frozenset(allowed_origins)

    def build_with_front() -> ASGIApp:
        return WithUsers(Front(build(), origins), users or Users(), api_key)

    app.build_middleware_stack = build_with_front  # type: ignore[method-assign]


class WithUsers:
    """An ASGI application around another, which tells whose key a request has."""

    def __init__(self, app: ASGIApp, users: Users, api_key: str | None) -> None:
        """``api_key``: what ``app`` takes in the place of a user's key."""
        self._app, self._users = app, users
        self._key = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        path = str(scope.get("path", ""))
        user = None
        if scope["type"] == "http" and (_is_ours(path) or path in _ASKING):
            user = self._users.of_header(Headers(scope=scope).get("authorization"))
        if user is None:
            await self._app(scope, receive, send)
            return
        if self._key is not None:
            rest = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
            scope = {**scope, "headers": [*rest, (b"authorization", self._key)]}
        with asked_by(user):
            await self._app(scope, receive, send)


class Front:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, allowed_origins: frozenset[str]) -> None:
        """Stand in front of ``app``."""
        self._app = app
        self._any_origin = "*" in allowed_origins
        self._allowed = allowed_origins
        self._for_others = CORSMiddleware(
            app,
            allow_origins=sorted(allowed_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        path = str(scope.get("path", ""))
        if scope["type"] == "http" and path.rstrip("/") == _ABORT:
            asked = asked_by_client.set(True)
            try:
                await self._app(scope, receive, send)
            finally:
                asked_by_client.reset(asked)
            return
        if scope["type"] != "http" or not _is_ours(path):
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = f"req_{secrets.token_hex(16)}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app_for(Headers(scope=scope))(scope, receive, send_with_id)

    def _app_for(self, headers: Headers) -> ASGIApp:
        """Return what answers a request with these headers."""
        origin = headers.get("origin")
        if origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
            return self._app
        if self._any_origin or origin in self._allowed:
            return self._for_others
        refusal = ApiError(
            403,
            "Pages of other origins may not use the batch API. Start the server with "
            "--batch-allow-origins and this page's origin to allow it.",
            code="origin_not_allowed",
        )
        return refusal.response()


def _is_ours(path: str) -> bool:
    return _is_below(path, _OURS)


def _is_below(path: str, routes: Iterable[str]) -> bool:
    return any(path == route or path.startswith(f"{route}/") for route in routes)
