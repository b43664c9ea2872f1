"""What stands in front of our routes: request ids, pages of other origins, HEAD, odd lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.middleware.cors import CORSMiddleware
from scripted import line, serve

from sglang.srt.blendserve.refusals import Refusal
from sglang.srt.blendserve.server.batch_settings import BatchSettings

pytestmark = pytest.mark.anyio

ROUTES = ["/v1/files", "/v1/batches", "/v1/batches/batch_x", "/v1/files/x/content", "/batches"]
ELSEWHERE = {"origin": "https://elsewhere.example"}


def as_sglang_has_it(app: Any) -> None:
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )


@pytest.mark.parametrize("path", [*ROUTES, "/v1/batches/x/y/z", "/v1/files/"])
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS"])
async def test_every_answer_has_an_id_of_its_own(directory: Path, path: str, method: str) -> None:
    async with serve(directory) as service:
        ids = {(await service.http.request(method, path)).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("req_[0-9a-f]{32}", one) for one in ids)


async def test_the_client_shows_the_id(directory: Path) -> None:
    async with serve(directory) as service:
        file = await service.client.files.create(file=("x", b"x"), purpose="batch")
        assert file._request_id is not None
        with pytest.raises(openai.NotFoundError) as caught:
            await service.client.batches.retrieve("batch_x")
        assert caught.value.request_id is not None


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://test.example"])
async def test_no_page_of_another_origin_is_answered(
    directory: Path, path: str, method: str, origin: str
) -> None:
    async with serve(directory, prepare=as_sglang_has_it) as service:
        asked = {"origin": origin, "access-control-request-method": "POST"}
        answer = await service.http.request(method, path, headers=asked)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_not_allowed"
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_the_server_s_own_page_and_programs_are_answered(directory: Path) -> None:
    async with serve(directory, prepare=as_sglang_has_it) as service:
        for headers in ({}, {"origin": "http://test"}):
            assert (await service.http.get("/v1/batches", headers=headers)).status_code == 200


@pytest.mark.parametrize("allowed", ["https://elsewhere.example, https://b.example:1", "*"])
async def test_an_allowed_origin_is_answered(directory: Path, allowed: str) -> None:
    async with serve(directory, prepare=as_sglang_has_it, allow_origins=allowed) as service:
        answer = await service.http.get("/v1/batches", headers=ELSEWHERE)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in ("*", ELSEWHERE["origin"])
        asked = ELSEWHERE | {
            "access-control-request-method": "DELETE",
            "access-control-request-headers": "authorization",
        }
        answer = await service.http.options("/v1/files/x", headers=asked)
        assert answer.status_code == 200
        assert "DELETE" in answer.headers["access-control-allow-methods"]
        refused = await service.http.get("/v1/batches", headers={"origin": "https://c.example"})
        assert refused.status_code == (200 if allowed == "*" else 403)


@pytest.mark.parametrize("bad", ["elsewhere.example", "https://a.example/", "https://a b"])
def test_what_is_no_origin_is_refused(bad: str) -> None:
    with pytest.raises(Refusal, match="--batch-allow-origins"):
        BatchSettings(allow_origins=bad)


async def test_head_of_a_file_s_content(directory: Path) -> None:
    async with serve(directory) as service:
        file = await service.client.files.create(file=("x", b"x" * 1234), purpose="batch")
        answer = await service.http.head(f"/v1/files/{file.id}/content")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == "1234"
        assert (await service.http.head("/v1/files/file-x/content")).status_code == 404


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
async def test_lists_take_an_empty_after_and_a_limit_of_0(directory: Path, path: str) -> None:
    async with serve(directory) as service:
        for _ in range(2):
            await service.finish((await service.submit([line("a")])).id)
        whole = (await service.http.get(path)).json()
        assert len(whole["data"]) >= 2
        assert (await service.http.get(f"{path}?after=")).json() == whole
        nothing = (await service.http.get(f"{path}?limit=0")).json()
        assert nothing == {
            "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False
        }  # fmt: skip
        after = whole["data"][0]["id"]
        assert (await service.http.get(f"{path}?limit=0&after={after}")).json() == nothing


async def test_limits_out_of_bounds_are_refused_in_openai_s_words(directory: Path) -> None:
    async with serve(directory) as service:
        error = (await service.http.get("/v1/batches?limit=101")).json()["error"]
        assert error == {
            "message": "Invalid 'limit': integer above maximum value. Expected a value <= 100, "
            "but got 101 instead.",
            "type": "invalid_request_error",
            "param": "limit",
            "code": "integer_above_max_value",
        }
        error = (await service.http.get("/v1/batches?limit=-1")).json()["error"]
        assert error["code"] == "integer_below_min_value"
