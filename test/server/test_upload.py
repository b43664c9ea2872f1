"""Uploads: streamed, bounded, and never half there."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import serve

from sglang.srt.blendserve.store import disk

pytestmark = pytest.mark.anyio

FORM = {"content-type": "multipart/form-data; boundary=XX"}


def form(*parts: tuple[str, bytes], end: bytes = b"--XX--\r\n") -> bytes:
    """Return a multipart body with boundary XX of parts (Content-Disposition, content)."""
    body = b""
    for disposition, data in parts:
        body += b"--XX\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n"
        body += data + b"\r\n"
    return body + end


PURPOSE = ('name="purpose"', b"batch")
FILE = ('name="file"; filename="in.jsonl"', b"content\r\n")


async def test_content_comes_back_byte_for_byte(directory: Path) -> None:
    data = bytes(range(256)) * 5000 + b"\r\n--XX\r\n--XX--"
    async with serve(directory) as service:
        file = await service.client.files.create(file=("näme.jsonl", data), purpose="batch")
        assert file.filename == "näme.jsonl"
        assert (await service.client.files.content(file.id)).content == data
        response = await service.http.get(f"/v1/files/{file.id}/content")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("order", [(PURPOSE, FILE), (FILE, PURPOSE)])
async def test_fields_may_come_in_any_order(directory: Path, order: tuple) -> None:
    async with serve(directory) as service:
        response = await service.http.post("/v1/files", content=form(*order), headers=FORM)
        assert response.status_code == 200
        assert response.json()["bytes"] == 9


BAD_FORMS = {
    "no file": (form(PURPOSE), "Missing required parameter: 'file'"),
    "no purpose": (form(FILE), "Missing required parameter: 'purpose'"),
    "two files": (form(PURPOSE, FILE, FILE), "exactly one file"),
    "file in another field": (
        form(PURPOSE, ('name="x"; filename="y"', b"")),
        "exactly one file",
    ),
    "cut short": (form(PURPOSE, FILE, end=b""), "not complete"),
    "not a form": (b"hello", "cannot be read"),
    "empty": (b"", "not complete"),
    "long field": (form(('name="purpose"', b"b" * 20000), FILE), "longer than"),
    "many parts": (form(*[(f'name="{n}"', b"") for n in range(20)]), "more than 16 parts"),
    "unknown field": (form(PURPOSE, FILE, ('name="colour"', b"red")), "Unknown parameter"),
    "nested and plain": (
        form(PURPOSE, FILE, ('name="expires_after"', b"x"), ('name="expires_after[s]"', b"1")),
        "expires_after",
    ),
    "bytes that are no text": (form(('name="\xff"', b"\xff"), PURPOSE, FILE), "Unknown parameter"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
async def test_a_bad_form_is_a_400_and_leaves_nothing(directory: Path, name: str) -> None:
    body, message = BAD_FORMS[name]
    async with serve(directory) as service:
        response = await service.http.post("/v1/files", content=body, headers=FORM)
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]
        assert list((directory / "files").iterdir()) == []


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 300]
)
async def test_another_content_type_is_a_400(directory: Path, kind: str) -> None:
    async with serve(directory) as service:
        response = await service.http.post(
            "/v1/files", content=form(PURPOSE, FILE), headers={"content-type": kind}
        )
        assert response.status_code == 400


async def test_a_file_over_the_limit_is_a_413_and_leaves_nothing(directory: Path) -> None:
    async with serve(directory, max_file_bytes=1000) as service:
        await service.client.files.create(file=("x", b"x" * 1000), purpose="batch")
        for size in (1001, 100_000):
            with pytest.raises(openai.APIStatusError) as caught:
                await service.client.files.create(file=("x", b"x" * size), purpose="batch")
            assert caught.value.status_code == 413
            assert caught.value.code == "file_too_large"
        assert len(list((directory / "files").iterdir())) == 1


async def test_an_upload_takes_constant_memory(directory: Path) -> None:
    size = 64 * 2**20
    piece = b"x" * 65536

    async def body() -> AsyncIterator[bytes]:
        head, tail = form(PURPOSE, ('name="file"; filename="x"', b"@")).split(b"@")
        yield head
        for _ in range(size // len(piece)):
            yield piece
        yield tail

    async with serve(directory) as service:
        await service.client.files.create(file=("x", b"warm up"), purpose="batch")
        tracemalloc.start()
        response = await service.http.post("/v1/files", content=body(), headers=FORM)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert response.json()["bytes"] == size
        assert peak < 8 * 2**20


async def test_a_full_disk_is_a_507_and_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    async with serve(directory) as service:
        monkeypatch.setattr(disk.os, "fsync", full)
        with pytest.raises(openai.InternalServerError) as caught:
            await service.client.files.create(file=("x", b"x" * 1000), purpose="batch")
        monkeypatch.undo()
        assert caught.value.status_code == 507
        assert "No space left" in caught.value.message
        assert "secret" not in caught.value.message
        assert list((directory / "files").iterdir()) == []
        assert [f async for f in service.client.files.list()] == []
        await service.client.files.create(file=("x", b"x"), purpose="batch")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=st.one_of(
        st.binary(max_size=400),
        st.lists(
            st.sampled_from(
                [b"--XX\r\n", b"--XX--", b"\r\n", b'Content-Disposition: form-data; name="file"',
                 b'; filename="a"', b'; filename=""', b'name="purpose"', b"batch", b"\r\n\r\n",
                 b"\x00", b"Content-Disposition", b":", b";", b"=", b'"']
            ),
            max_size=24,
        ).map(b"".join),
    ),
    cut=st.integers(1, 64),
)  # fmt: skip
async def test_no_body_breaks_the_server(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, cut: int
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), cut):
            yield body[start : start + cut]

    directory = tmp_path_factory.mktemp("fuzz")
    async with serve(directory) as service:
        response = await service.http.post("/v1/files", content=pieces(), headers=FORM)
        assert response.status_code in (200, 400)
        stored = list((directory / "files").iterdir())
        assert len(stored) == (response.status_code == 200)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(
    [b"{", b"}", b'"custom_id":', b'"a"', b",", b'"method":"POST"', b'"url":"/v1/completions"',
     b'"body":', b'{"prompt":"x"}', b"\n", b"\r\n", b"[", b"null", b"1e999", b"\xef\xbb\xbf",
     b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":"x"}}\n']),
    max_size=30).map(b"".join)))  # fmt: skip
async def test_any_content_ends_with_every_line_in_exactly_one_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    async with serve(tmp_path_factory.mktemp("fuzz")) as service:
        batch = await service.finish((await service.submit(content)).id)
        assert batch.status in ("completed", "failed")
        counts = batch.request_counts
        assert counts.completed + counts.failed == counts.total
        output, errors = await service.result_lines(batch)
        assert (len(output), len(errors)) == (counts.completed, counts.failed)
        assert len({one["id"] for one in output + errors}) == counts.total


async def test_uploads_at_once_are_bounded_and_the_next_one_gets_in_later(
    directory: Path,
) -> None:
    go = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        whole = form(PURPOSE, FILE)
        yield whole[:100]
        await go.wait()
        yield whole[100:]

    async with serve(directory, max_uploads=2) as service:
        post = service.http.post
        slow = [
            asyncio.ensure_future(post("/v1/files", content=body(), headers=FORM)) for _ in range(2)
        ]
        while len(list((directory / "files").iterdir())) < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as caught:
            await service.client.files.create(file=("x", b"x" * 100_000), purpose="batch")
        assert caught.value.code == "too_many_uploads"
        go.set()
        assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200, 200]
        await service.client.files.create(file=("x", b"x"), purpose="batch")


async def test_an_upload_that_goes_silent_is_given_up(directory: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield form(PURPOSE, FILE)[:100]
        await asyncio.Event().wait()

    async with serve(directory, upload_timeout=1, max_uploads=1) as service:
        answer = await service.http.post("/v1/files", content=body(), headers=FORM)
        assert answer.status_code == 408
        assert answer.json()["error"]["code"] == "upload_timeout"
        assert list((directory / "files").iterdir()) == []
        await service.client.files.create(file=("x", b"x"), purpose="batch")


async def test_json_bodies_are_bounded(directory: Path) -> None:
    async with serve(directory) as service:
        response = await service.http.post(
            "/v1/batches", content=b" " * (2 << 20), headers={"content-type": "application/json"}
        )
        assert response.status_code == 413
        for body in (b"", b"[]", b"null", b"{", b'{"metadata": ' + b"[" * 5000 + b"}"):
            response = await service.http.post(
                "/v1/batches", content=body, headers={"content-type": "application/json"}
            )
            assert response.status_code == 400
        assert (await service.http.post("/v1/batches", content=b"{}")).status_code == 400
