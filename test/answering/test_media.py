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
from PIL import ImageFile
from tiny_vision_model import as_address, png

from sglang.srt.blendserve.allowed_hosts import AllowedHosts
from sglang.srt.blendserve.answering import media_content, media_fetch
from sglang.srt.blendserve.answering.media import check_media, inline, inline_local, media_in
from sglang.srt.blendserve.answering.media_rules import MediaRules
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.types import Endpoint
from sglang.srt.blendserve.refusals import Refusal
from sglang.srt.blendserve.settings import Settings

CHAT = Endpoint.CHAT
PNG = png(1)
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "
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


def test_media_are_found_wherever_an_endpoint_takes_them() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "a"}},
        {"type": "input_image", "image_url": "b"},
        {"type": "video_url", "video_url": {"url": "c"}},
        {"type": "audio_url", "audio_url": {"url": "d"}},
        {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
        {"type": "image_url", "image_url": {"url": 5}},
        {"type": "image_url"},
    ]
    message = {"role": "user", "content": parts}
    base = "messages.0.content"
    assert [*media_in({"messages": [message]}, CHAT)] == [
        (f"{base}.0.image_url.url", "image", "a"),
        (f"{base}.1.image_url", "image", "b"),
        (f"{base}.2.video_url.url", "video", "c"),
        (f"{base}.3.audio_url.url", "recording", "d"),
        (f"{base}.4.input_audio.data", "recording", "data:;base64,QQ=="),
        (f"{base}.5.image_url.url", "image", None),
        (f"{base}.6.image_url", "image", None),
    ]
    pair = [{"text": "t", "image": "a", "video": "b"}, {"text": "t"}]
    assert [*media_in({"input": pair}, Endpoint.EMBEDDINGS)] == [
        ("input.0.image", "image", "a"),
        ("input.0.video", "video", "b"),
    ]
    ranked = {"query": "q", "documents": [parts[:1], "text"]}
    assert [one.path for one in media_in(ranked, Endpoint.RERANK)] == [
        "documents.0.0.image_url.url"
    ]
    assert [one.path for one in media_in({"input": [message]}, Endpoint.RESPONSES)][:1] == [
        "input.0.content.0.image_url.url"
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [], "items": 5, "documents": True, "query": 1.5, "input": 7},
        {"messages": "text"},
        {"messages": [{"role": "user", "content": "t"}], "documents": [{"image": "a.png"}]},
        {"messages": [{"role": "assistant", "content": None, "audio": {"id": "audio_1"}}]},
        {"messages": [{"role": "tool", "content": [{"type": "text", "text": "t", "image": ""}]}]},
        {"messages": [5, None, {"content": [5, {"type": []}, {"type": "text", "image_url": {}}]}]},
    ],
)
def test_the_user_s_own_data_are_no_media(body: dict[str, Any]) -> None:
    assert [*media_in(body, CHAT)] == []
    for url in Endpoint:
        check_media(body, url, rules(), taken=False)


def test_an_image_that_a_tool_has_made_is_not_left_out_silently() -> None:
    part = {"type": "input_image", "image_url": HELD}
    body = {"input": [{"type": "function_call_output", "call_id": "c", "output": [part]}]}
    with pytest.raises(RequestRefused, match="a tool's output is text") as caught:
        check_media(body, Endpoint.RESPONSES, rules(), taken=True)
    assert caught.value.param == "input.0.output.0.image_url"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("audio_url", b"ID3\x04"),
        ("audio_url", b"\xff\xfb\x90\x00"),
        ("audio_url", b"OggS"),
        ("video_url", b"\x00\x00\x00\x18ftypmp42"),
        ("video_url", b"\x1a\x45\xdf\xa3"),
    ],
)
def test_videos_and_recordings_begin_as_such_files_do(kind: str, data: bytes) -> None:
    check_media(body_with(as_address(data), kind), CHAT, rules(), taken=True)
    for other in (b"a list of files", b"<list/>", b"#list", PNG):
        with pytest.raises(RequestRefused, match="of a known kind"):
            check_media(body_with(as_address(other), kind), CHAT, rules(), taken=True)


def test_what_a_line_holds_is_taken() -> None:
    check_media(body_with(HELD), CHAT, rules(), taken=True)
    check_media(body_with(as_address(WAV, "audio/wav"), "audio_url"), CHAT, rules(), taken=True)
    check_media(
        {"messages": [{"role": "user", "content": "image_url"}]}, CHAT, rules(), taken=False
    )


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
        ("iVBORw0KGgoAAAANSUhEUg", "if it is Base64"),
    ],
)
def test_a_refusal_names_the_field_and_the_way_out(source: Any, words: str) -> None:
    with pytest.raises(RequestRefused, match=words) as caught:
        check_media(body_with(source), CHAT, rules(media_bytes=20_000), taken=True)
    assert caught.value.param == "messages.1.content.1.image_url.url"
    assert str(caught.value).startswith(caught.value.param)


def test_a_model_that_takes_text_only_is_shown_no_image() -> None:
    with pytest.raises(RequestRefused, match="run for text only"):
        check_media(body_with(HELD), CHAT, rules(), taken=False)


def test_an_image_of_too_many_pixels_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacked(_: object) -> None:
        raise AssertionError("it is unpacked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", unpacked)
    monkeypatch.setattr(media_content, "MOST_PIXELS", 60 * 40)
    check_media(body_with(HELD), CHAT, rules(), taken=True)
    with pytest.raises(RequestRefused, match="has 60 x 41 pixels; at most 2,400"):
        check_media(body_with(as_address(png(1, 60, 41))), CHAT, rules(), taken=True)


@pytest.mark.parametrize("name", ["cat.png", "below/a cat.png", "file:///{root}/below/a%20cat.png"])
def test_files_below_the_root_are_read(name: str, root: Path) -> None:
    request = SimpleNamespace(image_data=name.format(root=root))
    assert inline_local(request, rules(root))
    assert request.image_data == [as_address(PNG, "application/octet-stream")]


def test_no_other_file_is_read(root: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (root / "link.png").symlink_to(tmp_path / "beside.png")
    os.mkfifo(root / "pipe")
    reasons = {
        "../beside.png": "outside of",
        f"file://{tmp_path}/beside.png": "outside of",
        "link.png": "outside of",
        "none.png": "cannot be read: No such file",
        "below": "no file",
        "pipe": "no file",
        "file://other/cat.png": "must be a data:",
        "ftp://example.com/cat.png": "must be a data:",
        "a\0b": "cannot be read",
        "": "no file",
    }
    for source, words in reasons.items():
        with pytest.raises(RequestRefused, match=words):
            check_media(body_with(source), CHAT, rules(root), taken=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_all_forms_of_the_engine_s_requests_are_filled_in(root: Path) -> None:
    (root / "clip.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    asked = SimpleNamespace(
        image_data=[[SimpleNamespace(url="cat.png"), HELD], [None]],
        video_data="clip.mp4",
        audio_data=None,
    )
    assert inline_local(asked, rules(root))
    read = as_address(PNG, "application/octet-stream")
    film = as_address(b"\x00\x00\x00\x18ftypmp42", "application/octet-stream")
    assert (asked.image_data[0][0].url, asked.image_data[0][1]) == (read, HELD)
    assert asked.video_data == [film]
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
        if name == "broken.png":
            return web.Response(status=500)
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
        check_media(body_with(f"{base}/cat.png"), CHAT, given, taken=True)
        assert not seen  # looking at a line fetches nothing
        for name in ("cat.png", "moved.png", "busy.png", "cat.png"):
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
        assert seen.count("cat.png") == 2  # for itself and for moved.png; it is kept then
        for _ in range(9):  # it is the address that fails, and not its host
            with pytest.raises(RequestRefused, match="status 500"):
                await inline(asked_for(f"{base}/broken.png"), given)
        assert seen.count("broken.png") == 3
        many = [asked_for(f"{base}/one?a=%2F&n=1#part") for _ in range(5)]
        await asyncio.gather(*(inline(one, given) for one in many))
        assert seen.count("one") == 1
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
async def test_a_host_that_says_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
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
        for number in range(4):
            with pytest.raises(RequestRefused, match=r"no answer within"):
                await inline(asked_for(f"http://localhost:{port}/{number}.png"), given)
        assert calls == 12
        with pytest.raises(RequestRefused, match="did not answer a moment ago"):
            await inline(asked_for(f"http://localhost:{port}/more.png"), given)
    assert calls == 12


@pytest.mark.anyio
async def test_a_name_that_leads_inside_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_fetch, "_PAUSE_SECONDS", 60)
    async with images(lambda _: web.Response(body=PNG)) as port:
        private = MediaRules(AllowedHosts((f"localhost:{port}",)), None, 1 << 20)
        with pytest.raises(RequestRefused, match="its host has no public address"):
            await inline(asked_for(f"https://localhost:{port}/cat.png"), private)


def test_settings_are_of_one_folder_wherever_they_go(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    given = Settings(media_root="root")
    monkeypatch.chdir("/")
    assert MediaRules.of(SimpleNamespace(blendserve=given)).root == root


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"--blendserve-media-root .* no such folder"):
        Settings(media_root=str(tmp_path / "none"))
    with pytest.raises(Refusal, match=r"--blendserve-media-hosts .* is no host"):
        Settings(media_hosts="a.example,b.example/x")
