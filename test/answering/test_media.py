"""Where images, videos and recordings of lines may come from, and how large they may be.

pytest test/answering/test_media.py
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from tiny_vision_model import as_address, png

from sglang.srt.blendserve.allowed_hosts import AllowedHosts
from sglang.srt.blendserve.answering import media, media_fetch
from sglang.srt.blendserve.answering.media import (
    MediaRules,
    check_media,
    inline,
    inline_local,
    media_in,
)
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.refusals import Refusal
from sglang.srt.blendserve.settings import Settings

PNG = png(1)
HELD = as_address(PNG)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "below").mkdir(parents=True)
    (folder / "cat.png").write_bytes(PNG)
    (folder / "below" / "a cat.png").write_bytes(PNG)
    (tmp_path / "beside.png").write_bytes(PNG)
    return folder


def rules(root: Path | None = None, hosts: str = "", **settings: Any) -> MediaRules:
    given = Settings(media_root=str(root or ""), media_hosts=hosts, **settings)
    return MediaRules.of(SimpleNamespace(blendserve=given))


def body_with(source: Any, kind: str = "image_url") -> dict[str, Any]:
    part = {"type": kind, kind: {"url": source}}
    content = [{"type": "text", "text": "What?"}, part]
    return {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": content}]}


def test_media_are_found_wherever_a_body_has_them() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "a"}},
        {"type": "input_image", "image_url": "b"},
        {"type": "video_url", "video_url": {"url": "c"}},
        {"type": "audio_url", "audio_url": {"url": "d"}},
        {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
        {"type": "image_url", "image_url": {"url": 5}},
    ]
    found = [*media_in({"messages": [{"role": "user", "content": parts}], "image": "no part"})]
    base = "messages.0.content"
    assert found == [
        (f"{base}.0.image_url.url", "image", "a"),
        (f"{base}.1.image_url", "image", "b"),
        (f"{base}.2.video_url.url", "video", "c"),
        (f"{base}.3.audio_url.url", "recording", "d"),
        (f"{base}.4.input_audio.data", "recording", "data:;base64,QQ=="),
        (f"{base}.5.image_url.url", "image", None),
    ]
    assert [*media_in({"input": [{"text": "t", "image": "a"}, {"text": "t"}]})] == [
        ("input.0.image", "image", "a")
    ]
    assert [*media_in({"input": "text"})] == [*media_in({"messages": "text"})] == []
    assert [one.path for one in media_in({"query": "q", "documents": [parts[:1], "text"]})] == [
        "documents.0.0.image_url.url"
    ]


def test_what_a_line_holds_is_taken() -> None:
    check_media(body_with(HELD), rules(), taken=True)
    check_media(body_with("data:audio/wav;base64,QQ==", "audio_url"), rules(), taken=True)
    check_media({"messages": [{"role": "user", "content": "image_url"}]}, rules(), taken=False)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("data:image/png,x", "must begin with data:TYPE;base64,"),
        ("data:image/png;base64,???", "is not Base64"),
        ("data:image/png;base64,", "is empty"),
        (as_address(b"<svg/>"), "is no image that can be read"),
        (as_address(PNG * 99), "has more than 20,000 bytes"),
        (None, "has no address and no data"),
        ("https://images.example.com/a.png", "no host is allowed"),
        ("cat.png", "no folder is allowed"),
    ],
)
def test_a_refusal_names_the_field_and_the_way_out(source: Any, words: str) -> None:
    with pytest.raises(RequestRefused, match=words) as caught:
        check_media(body_with(source), rules(media_bytes=20_000), taken=True)
    assert caught.value.param == "messages.1.content.1.image_url.url"
    assert str(caught.value).startswith(caught.value.param)


def test_a_model_that_takes_text_only_is_shown_no_image() -> None:
    with pytest.raises(RequestRefused, match="run for text only"):
        check_media(body_with(HELD), rules(), taken=False)


def test_an_image_of_too_many_pixels_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MOST_PIXELS", 60 * 40)
    check_media(body_with(HELD), rules(), taken=True)
    with pytest.raises(RequestRefused, match="has 60 x 41 pixels; at most 2,400"):
        check_media(body_with(as_address(png(1, 60, 41))), rules(), taken=True)


@pytest.mark.parametrize("name", ["cat.png", "below/a cat.png", "file:///{root}/below/a%20cat.png"])
def test_files_below_the_root_are_read(name: str, root: Path) -> None:
    request = SimpleNamespace(image_data=name.format(root=root))
    assert inline_local(request, rules(root))
    assert request.image_data == [as_address(PNG, "application/octet-stream")]


def test_no_other_file_is_read(root: Path, tmp_path: Path) -> None:
    (root / "link.png").symlink_to(tmp_path / "beside.png")
    os.mkfifo(root / "pipe")
    reasons = {
        "../beside.png": "outside of",
        f"file://{tmp_path}/beside.png": "outside of",
        "link.png": "outside of",
        "none.png": "cannot be read: No such file",
        "below": "Is a directory",
        "pipe": "no file",
        "file://other/cat.png": "must be a data:",
        "ftp://example.com/cat.png": "must be a data:",
        "a\0b": "cannot be read",
        "": "Is a directory",
    }
    for source, words in reasons.items():
        with pytest.raises(RequestRefused, match=words):
            check_media(body_with(source), rules(root), taken=True)


def test_all_forms_of_the_engine_s_requests_are_filled_in(root: Path) -> None:
    asked = SimpleNamespace(
        image_data=[[SimpleNamespace(url="cat.png"), HELD], [None]],
        video_data="cat.png",
        audio_data=None,
    )
    assert inline_local(asked, rules(root))
    read = as_address(PNG, "application/octet-stream")
    assert (asked.image_data[0][0].url, asked.image_data[0][1]) == (read, HELD)
    assert asked.video_data == [read]
    with pytest.raises(RequestRefused, match="must be addresses or data"):
        inline_local(SimpleNamespace(image_data=[b"bytes"]), rules(root))


Answer = Callable[[web.Request], web.StreamResponse]


@asynccontextmanager
async def images(answer: Answer) -> AsyncIterator[str]:
    """A real web server on the loopback."""

    async def respond(request: web.Request) -> web.StreamResponse:
        return answer(request)

    app = web.Application()
    app.router.add_get("/{name:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def asked_for(url: str) -> Any:
    return SimpleNamespace(image_data=[SimpleNamespace(url=url)], video_data=None, audio_data=None)


@pytest.mark.anyio
async def test_images_are_fetched_from_hosts_that_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(media_fetch, "_PAUSE_SECONDS", 0.01)
    seen: list[str] = []

    def answer(request: web.Request) -> web.StreamResponse:
        seen.append(name := request.match_info["name"])
        if name == "busy.png" and seen.count(name) < 3:
            return web.Response(status=503)
        if name == "moved.png":
            return web.Response(status=302, headers={"Location": "/cat.png"})
        if name == "away.png":
            return web.Response(status=302, headers={"Location": "http://elsewhere.example/x"})
        if name == "round.png":
            return web.Response(status=302, headers={"Location": "/round.png"})
        return web.Response(body=PNG, status=404 if name == "none.png" else 200)

    async with images(answer) as port:
        given = rules(hosts=f"localhost:{port}", media_private="yes")
        base = f"http://localhost:{port}"
        check_media(body_with(f"{base}/cat.png"), given, taken=True)
        assert not seen  # looking at a line fetches nothing
        for name in ("cat.png", "moved.png", "busy.png"):
            request = asked_for(f"{base}/{name}")
            assert not inline_local(request, given)
            await inline(request, given)
            assert request.image_data[0].url == as_address(PNG, "application/octet-stream")
        for name, words in {
            "none.png": "status 404",
            "away.png": "elsewhere.example is none of the hosts",
            "round.png": "more than 5 redirections",
        }.items():
            with pytest.raises(RequestRefused, match=words):
                await inline(asked_for(f"{base}/{name}"), given)
        assert seen.count("none.png") == 1
        small = rules(hosts=f"localhost:{port}", media_private="yes", media_bytes=100)
        with pytest.raises(RequestRefused, match="has more than 100 bytes"):
            await inline(asked_for(f"{base}/cat.png"), small)
        before = len(seen)
        private = MediaRules(AllowedHosts((f"localhost:{port}",)), None, 1 << 20)
        for url in (f"{base}/cat.png", f"https://localhost:{port}/cat.png"):
            with pytest.raises(RequestRefused, match=r"must begin with https|no public address"):
                await inline(asked_for(url), private)
        assert len(seen) == before


@pytest.mark.anyio
async def test_a_host_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_fetch, "SECONDS", 0.05)
    monkeypatch.setattr(media_fetch, "_PAUSE_SECONDS", 0.01)
    calls = 0

    async def silent(*_: Any) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(10)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        given = rules(hosts=f"localhost:{port}", media_private="yes")
        with pytest.raises(RequestRefused, match=r"no answer within"):
            await inline(asked_for(f"http://localhost:{port}/a.png"), given)
    assert calls == 3


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"--blendserve-media-root .* no such folder"):
        Settings(media_root=str(tmp_path / "none"))
    with pytest.raises(Refusal, match=r"--blendserve-media-hosts .* is no host"):
        Settings(media_hosts="a.example,b.example/x")
