"""The page ``/batches``: what it shows, what it lets in, and how a browser takes it."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import re
import shutil
import threading
from pathlib import Path

import pytest
from on_a_port import on_a_port
from scripted import MODEL, Held, ScriptedEngine, line, serve

from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.server.open_batch import OpenBatch
from sglang.srt.blendserve.server.plan_view import HEIGHT, WIDTH, OnlineView, PlanView, bars

pytestmark = pytest.mark.anyio

PLAN = PlanView(
    waiting=40,
    running=7,
    density=(120.0, 12.0, 1.5, 0.4, 0.02),
    root_density=2.5,
    sharing=0.31,
    optimum_seconds=81.0,
    cached={
        "soon": 1234567,
        "next": 20,
        "later": 3,
        "unneeded": 4000,
        "unknown": 0,
        "compute_bound": 1234577,
        "memory_bound": 13,
        "hits": 9876543,
    },
)
NASTY = "<script>document.title='owned'</script>\"'&"


async def test_an_empty_service_says_so(directory: Path) -> None:
    async with serve(directory) as service:
        page = await service.http.get("/batches")
        assert page.status_code == 200
        assert 'id="no-batches"' in page.text
        assert 'id="no-plan"' in page.text
        assert "<svg" not in page.text


async def test_what_online_requests_feel_is_shown_once_there_were_any(directory: Path) -> None:
    online = OnlineView(
        ended=12,
        running=2,
        waiting=1,
        parked=7,
        ttft_p50=0.2104,
        ttft_p95=1.5,
        ttft_target=0.25,
        tpot_p50=0.02,
        tpot_p95=0.03,
        tpot_target=None,
    )
    engine = ScriptedEngine()
    async with serve(directory, engine) as service:
        assert 'id="online"' not in (await service.http.get("/batches")).text
        engine.shown_online = online
        page = (await service.http.get("/batches")).text
        assert "210 ms median, 1.50 s P95, to be 250 ms" in page
        assert "20 ms median, 30 ms P95<" in page
        assert "12; 3 in the engine" in page
        assert "<dd>7</dd>" in page
        engine.shown_online = dataclasses.replace(online, tpot_p50=None)
        assert "per token" not in (await service.http.get("/batches")).text


def test_a_scheduler_without_online_requests_shows_none() -> None:
    assert OnlineView.from_state({}) is None
    assert OnlineView.from_state({"blendserve": {"online": {"ttft_p50": None}}}) is None


async def test_nothing_but_the_pages_own_style_is_let_in(directory: Path) -> None:
    async with serve(directory) as service:
        page = await service.http.get("/batches")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        nonce = re.search(r"'nonce-([^']+)'", policy)[1]
        assert f'<style nonce="{nonce}">' in page.text
        assert " style=" not in page.text
        assert "<script" not in page.text
        again = await service.http.get("/batches")
        assert nonce not in again.text


async def test_batches_are_shown_escaped_and_paged(directory: Path) -> None:
    async with serve(directory, ScriptedEngine(shown_plan=PLAN)) as service:
        for n in range(3):
            batch = await service.submit(
                [line("a"), line("b", url=NASTY)], metadata={"note": NASTY + str(n)}
            )
            await service.finish(batch.id)
        page = (await service.http.get("/batches?limit=2")).text
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert "1 done, 1 failed of 2" in page
        assert "unsupported_url" in page
        assert page.count("<progress") == 2
        older = re.search(r'href="(\?after=batch_[0-9a-f]{32})"', page)[1]
        rest = (await service.http.get("/batches" + older)).text
        assert rest.count("<progress") == 1
        assert page.count("<rect") == len(PLAN.density)
        assert "31.0 % of prompt tokens" in page
        cached = page[page.index('id="cached"') :]
        assert re.findall(r"<dd>(.*?)</dd>", cached[: cached.index("</dl>")]) == [
            "1,234,567",
            "20",
            "3",
            "4,000",
            "1,234,577 / 13",
            "9,876,543",
        ]


async def test_a_batch_has_a_page_of_its_own(directory: Path) -> None:
    lines = [line(f"a{n}") for n in range(8)] + [line("long"), line("b", url=NASTY)]
    async with serve(directory, ScriptedEngine(refused=frozenset(("long",)))) as service:
        batch = await service.submit(lines, metadata={"note": NASTY})
        await service.finish(batch.id)
        listed = (await service.http.get("/batches")).text
        assert f'href="batches/{batch.id}"' in listed
        answer = await service.http.get(f"/batches/{batch.id}")
        assert answer.status_code == 200
        assert "script-src" not in answer.headers["content-security-policy"]
        page = answer.text
        assert "<script" not in page
        assert "8 done, 2 failed of 10" in page
        assert "too long" in page
        assert "unsupported_url" in page
        assert "http-equiv" not in page  # it does not change any more
        rows = re.findall(r"<tr><td class=.number.>(\d+)</td><td>(.*?)</td>", page)
        assert sorted(rows) == [("1", "400"), ("1", "not sent")]
        assert (await service.http.get("/batches/batch_" + "0" * 32)).status_code == 404
        fine = await service.submit([line("a")])
        await service.finish(fine.id)
        assert 'id="no-errors"' in (await service.http.get(f"/batches/{fine.id}")).text


async def test_when_a_batch_is_expected_to_end(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: BatchLine) -> None:
        await asyncio.Event().wait()

    async with serve(directory, ScriptedEngine(never)) as service:
        batch = await service.submit([line("a")], completion_window="1h")
        shown = (await service.http.get(f"/v1/batches/{batch.id}")).json()
        assert shown["forecast"] is None  # nobody knows yet
        for seconds, in_time in ((600.0, True), (7200.0, False)):
            monkeypatch.setattr(OpenBatch, "seconds_left", property(lambda _, s=seconds: s))
            shown = (await service.http.get(f"/v1/batches/{batch.id}")).json()
            assert shown["forecast"]["in_time"] is in_time
            assert 0 <= shown["forecast"]["ends_at"] - shown["created_at"] - seconds <= 5
            page = (await service.http.get(f"/batches/{batch.id}")).text
            assert 'id="forecast"' in page
            assert ("after its window" in page) is not in_time
        await service.client.batches.cancel(batch.id)
        ended = await service.finish(batch.id)
        assert (await service.http.get(f"/v1/batches/{ended.id}")).json()["forecast"] is None


async def test_a_batch_that_waits_for_others_is_forecast_by_their_rate(directory: Path) -> None:
    async with serve(directory, ScriptedEngine(Held(30))) as service:
        first = await service.submit([line(f"a{n}") for n in range(60)])
        for _ in range(300):
            counts = (await service.client.batches.retrieve(first.id)).request_counts
            if counts is not None and counts.completed >= 30:
                break
            await asyncio.sleep(0.02)
        second = await service.submit([line(f"b{n}") for n in range(500)])
        for _ in range(200):
            shown = (await service.http.get(f"/v1/batches/{second.id}")).json()
            if shown["forecast"] is not None:
                break
            await asyncio.sleep(0.02)
        assert shown["forecast"]["ends_at"] > shown["created_at"]
        for batch in (first, second):
            await service.client.batches.cancel(batch.id)


async def test_a_cache_that_knows_no_plan_is_not_shown(directory: Path) -> None:
    engine = ScriptedEngine(shown_plan=dataclasses.replace(PLAN, cached=None))
    async with serve(directory, engine) as service:
        page = (await service.http.get("/batches")).text
        assert 'id="plan"' in page
        assert 'id="cached"' not in page


def test_bars_stay_in_the_picture() -> None:
    density = (float("inf"), 1e9, 1e3, 1.0, 0.5, 1e-9, 0.0)
    found = bars(density)
    assert len(found) == len(density)
    for x, y, width, height, compute in found:
        assert 0 <= x <= x + width <= WIDTH + 1e-9
        assert 0 <= y <= y + height <= HEIGHT
        assert compute == (y + height <= HEIGHT / 2)
    heights = [height for _, _, _, height, _ in found]
    assert heights[0] == heights[1] == heights[2] == heights[-1] == HEIGHT / 2


def test_a_scheduler_without_a_plan_has_no_view() -> None:
    assert PlanView.from_state({}) is None
    state = {"plans_made": 1, **dataclasses.asdict(PLAN)}
    assert PlanView.from_state({"blendserve": state}) == PLAN
    assert PlanView.from_state({"blendserve": {**state, "waiting": 0}}) is None
    assert PlanView.from_state({"blendserve": {**state, "density": []}}) is None


async def browse(profile: Path, *arguments: str) -> str:
    """Run headless Chromium; return what it prints."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    process = await asyncio.create_subprocess_exec(
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=2000",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    stdout, _ = await asyncio.wait_for(process.communicate(), 90)
    return stdout.decode()


async def test_in_a_browser(directory: Path, tmp_path: Path) -> None:
    gate = threading.Event()

    async def half(request: BatchLine) -> None:
        while int(request.custom_id) >= 2 and not gate.is_set():
            await asyncio.sleep(0.02)

    engine = ScriptedEngine(half, shown_plan=PLAN)
    async with serve(directory, engine) as service, on_a_port(service) as url:
        batch = await service.submit([line(str(n)) for n in range(4)], metadata={"n": NASTY})
        while (await service.client.batches.retrieve(batch.id)).request_counts.completed < 2:
            await asyncio.sleep(0.02)

        page = await browse(tmp_path / "profile", "--dump-dom", f"{url}/batches")

        assert f"<title>Batches of {MODEL}</title>" in page  # no script has changed it
        assert re.search(r'<progress max="4" value="2">', page)
        assert "2 done, 0 failed of 4" in page
        shot = tmp_path / "page.png"
        await browse(
            tmp_path / "profile",
            "--window-size=1000,900",
            f"--screenshot={shot}",
            f"{url}/batches",
        )
        colours = colours_of(shot)
        assert (217, 130, 43) in colours  # .compute: the page's style was let in
        assert (43, 123, 217) in colours  # .memory
        gate.set()
        await service.finish(batch.id)
        page = await browse(tmp_path / "profile", "--dump-dom", f"{url}/batches")
        assert "4 done, 0 failed of 4" in page


async def test_ten_thousand_lines_in_a_browser(directory: Path, tmp_path: Path) -> None:
    """Errors stand together by kind, and nothing that lines hold is run."""
    refused = frozenset(str(number) for number in range(0, 10_000, 20))
    engine = ScriptedEngine(refused=refused)
    lines = [line(str(number)) for number in range(10_000)]
    for number in range(7, 10_000, 100):
        lines[number] = line(f"{number} {NASTY}", url=NASTY)
    async with serve(directory, engine) as service, on_a_port(service) as url:
        batch = await service.submit(lines)
        await service.finish(batch.id)
        page = await browse(tmp_path / "profile", "--dump-dom", f"{url}/batches/{batch.id}")
        assert f"<title>{batch.id}</title>" in page  # no script has changed it
        assert "9400 done, 600 failed of 10000" in page
        rows = re.findall(r"<tr><td class=.number.>(\d+)</td><td>(.*?)</td>", page)
        assert rows == [("500", "400"), ("100", "not sent")]
        assert html.escape(f"{7} {NASTY}", quote=False) in page  # a custom_id
        assert html.escape(repr(NASTY), quote=False) in page  # a message
        assert "<td>0, 20, 40, 60, 80, 100, 120, 140, 160, 180</td>" in page
        assert "<script" not in page


def colours_of(picture: Path) -> set[tuple[int, ...]]:
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    return {colour for _, colour in image.getcolors(1 << 24)}
