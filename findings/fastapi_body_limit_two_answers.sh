#!/usr/bin/env bash
# FastAPI's body limit answers one refusal in two ways, by how the client sends the body.
#
# Guess beforehand: a body over ``max_body_size`` is refused with status 413 through the
# application's handler for HTTPException, so that every error of an API has the API's own form.
#
# Seen (fastapi 0.165.0, starlette 1.10.0, uvicorn 0.51.0, httpx 0.28.1): only a body without a
# declared length is. One whose Content-Length is over the limit, as nearly every client sends it,
# is answered with the plain text "Content Too Large" before the application's handlers and
# middleware see it; a handler for the status 413 itself is not asked either. Limits of a route and
# of the application behave alike. Both are status 413, and nothing is let in.
#
# What follows for a server whose errors have a fixed form, such as OpenAI's: bound the body in the
# route and raise an error of its own there, or accept that a client finds text where it parses JSON.
#
# Exits with 0 if it is still so, 1 if it has changed. Takes a minute; needs Python 3.11 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    fastapi==0.165.0 starlette==1.10.0 uvicorn==0.51.0 httpx==0.28.1
cat >seen.py <<'PYTHON'
import socket
import sys
import threading
import time

import fastapi
import httpx
import starlette
import uvicorn
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

LIMIT, SIZE = 1_000, 5_000


def application(app_limit, route_limit):
    app = fastapi.FastAPI(max_body_size=app_limit)

    @app.exception_handler(HTTPException)
    async def ours(request, error):
        return JSONResponse({"error": {"status": error.status_code}}, error.status_code)

    @app.exception_handler(413)
    async def ours_for_the_status(request, error):
        return JSONResponse({"error": {"status": 413}}, 413)

    @app.post("/count", max_body_size=route_limit)
    async def count(request: fastapi.Request):
        return {"bytes": len(await request.body())}

    return app


def pieces():
    for _ in range(SIZE // 100):
        yield b"x" * 100


def ask(app):
    """Answers of a real server to a small body and to a large one, sent in two ways."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        with httpx.Client(base_url="http://127.0.0.1:%d" % listener.getsockname()[1]) as client:
            for body in (b"x" * 10, b"x" * SIZE, pieces()):
                answer = client.post("/count", content=body)
                kind = answer.headers["content-type"].partition(";")[0]
                yield answer.status_code, kind, answer.text
    finally:
        server.should_exit = True
        thread.join()


print("fastapi", fastapi.__version__, "starlette", starlette.__version__)
same = True
for where, limits in (("application", (LIMIT, None)), ("route", (None, LIMIT))):
    small, declared, streamed = ask(application(*limits))
    print(f"limit of the {where}: small {small}, declared {declared}, streamed {streamed}")
    same &= small[0] == 200
    same &= declared == (413, "text/plain", "Content Too Large")
    same &= streamed == (413, "application/json", '{"error":{"status":413}}')
print("as described" if same else "this has changed")
sys.exit(not same)
PYTHON
venv/bin/python -W ignore seen.py
