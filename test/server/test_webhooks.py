"""Calls that tell of the end of batches: signed, tried again, to nobody who must not be called.

Run: pytest test/server/test_webhooks.py
"""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from openai import OpenAI
from scripted import ScriptedEngine, line, serve
from standardwebhooks import Webhook

from sglang.srt.blendserve.allowed_hosts import AllowedHosts, NotAllowed
from sglang.srt.blendserve.server import webhooks
from sglang.srt.blendserve.server.batch_settings import BatchSettings
from sglang.srt.blendserve.server.webhooks import secret_in

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(webhooks, "_TICK_SECONDS", 0.05)


@dataclass
class Receiver:
    """A web server that notes who calls, and answers with what it is told."""

    statuses: list[int] = field(default_factory=list)
    calls: list[tuple[dict[str, str], str]] = field(default_factory=list)
    url: str = ""
    port: int = 0

    async def take(self, request: web.Request) -> web.Response:
        self.calls.append(({**request.headers}, await request.text()))
        status = self.statuses.pop(0) if self.statuses else 200
        headers = {"Location": self.url + "/elsewhere"} if status == 302 else {}
        return web.Response(status=status, headers=headers)

    async def wait_for(self, calls: int) -> None:
        for _ in range(500):
            if len(self.calls) >= calls:
                return
            await asyncio.sleep(0.02)
        raise TimeoutError(f"{len(self.calls)} calls")


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[Receiver]:
    found = Receiver([*statuses])
    app = web.Application()

    async def take(request: web.Request) -> web.StreamResponse:
        return await found.take(request)

    app.router.add_post("/{tail:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.port = runner.addresses[0][1]
    found.url = f"http://127.0.0.1:{found.port}/hook"
    yield found
    await runner.cleanup()


def local(found: Receiver) -> dict[str, str]:
    return {"webhook_hosts": f"127.0.0.1:{found.port}", "webhook_private": "yes"}


async def test_the_end_is_told_and_openai_s_client_reads_it(tmp_path: Path) -> None:
    async with receiver() as hook, serve(tmp_path / "b", **local(hook)) as service:
        batch = await service.submit([line("a")], extra_body={"webhook_url": hook.url})
        await service.finish(batch.id)
        await hook.wait_for(1)
        headers, body = hook.calls[0]
        secret = (tmp_path / "b" / "webhook.secret").read_text().strip()
        assert Webhook(secret).verify(body, headers)["data"] == {"id": batch.id}
        event = OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=secret)
        assert event.type == "batch.completed"
        assert event.data.id == batch.id
        assert event.id == headers["webhook-id"]
        with pytest.raises(Exception, match="signature"):
            Webhook(secret).verify(body.replace("completed", "failed"), headers)
        await asyncio.sleep(0.3)
        assert len(hook.calls) == 1
    assert (tmp_path / "b" / "webhook.secret").stat().st_mode & 0o077 == 0


async def test_it_is_tried_again_with_the_same_id(tmp_path: Path) -> None:
    async with receiver(500, 302, 429) as hook, serve(tmp_path / "b", **local(hook)) as service:
        batch = await service.submit([line("a")], extra_body={"webhook_url": hook.url})
        await service.finish(batch.id)
        await hook.wait_for(4)
        assert len({headers["webhook-id"] for headers, _ in hook.calls}) == 1
        assert len({body for _, body in hook.calls}) == 1
        await asyncio.sleep(0.3)
        assert len(hook.calls) == 4


@pytest.mark.parametrize(("statuses", "calls"), [((500,) * 9, 4), ((410,) * 9, 1)])
async def test_it_is_given_up_in_the_end(
    statuses: tuple[int, ...], calls: int, tmp_path: Path
) -> None:
    async with receiver(*statuses) as hook, serve(tmp_path / "b", **local(hook)) as service:
        batch = await service.submit([line("a")], extra_body={"webhook_url": hook.url})
        await service.finish(batch.id)
        await hook.wait_for(calls)
        await asyncio.sleep(0.4)
        assert len(hook.calls) == calls


async def test_every_way_to_end_is_told(tmp_path: Path) -> None:
    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    async with (
        receiver() as hook,
        serve(tmp_path / "b", ScriptedEngine(never), **local(hook)) as service,
    ):
        cancelled = await service.submit([line("a")], extra_body={"webhook_url": hook.url})
        await service.client.batches.cancel(cancelled.id)
        failed = await service.submit(b"\n", extra_body={"webhook_url": hook.url})
        silent = await service.submit([line("a")])
        await service.client.batches.cancel(silent.id)
        for batch in (cancelled, failed, silent):
            await service.finish(batch.id)
        await hook.wait_for(2)
        told = {json.loads(body)["data"]["id"]: json.loads(body)["type"] for _, body in hook.calls}
        assert told == {cancelled.id: "batch.cancelled", failed.id: "batch.failed"}


async def test_a_call_that_is_due_outlives_kill_9(tmp_path: Path) -> None:
    """The receiver is there only after the server, in a process of its own, was killed."""
    async with receiver(*([500] * 3)) as hook:
        script = f"""
import asyncio, sys
sys.path[:0] = [{str(Path(__file__).parents[1] / "helpers")!r}]
from pathlib import Path
from scripted import line, serve
from sglang.srt.blendserve.server import webhooks
webhooks._TICK_SECONDS = 0.05
async def main():
    async with serve(Path({str(tmp_path / "b")!r}), **{local(hook)!r}) as service:
        batch = await service.submit([line("a")], extra_body={{"webhook_url": {hook.url!r}}})
        await service.finish(batch.id)
        await asyncio.sleep(60)
asyncio.run(main())
"""
        process = subprocess.Popen([sys.executable, "-c", script])
        try:
            for _ in range(3000):
                if hook.calls:
                    break
                await asyncio.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = len(hook.calls)
        assert before >= 1
        hook.statuses.clear()
        async with serve(tmp_path / "b", **local(hook)):
            # The pause after the first try is that of the other process.
            for _ in range(600):
                if len(hook.calls) > before:
                    break
                await asyncio.sleep(0.02)
        assert len(hook.calls) > before
        assert len({headers["webhook-id"] for headers, _ in hook.calls}) == 1


async def test_whom_nobody_may_have_called(tmp_path: Path) -> None:
    async with serve(tmp_path / "b", webhook_hosts="hooks.example.com") as service:
        for url, words in {
            "https://other.example.com/x": "none of the hosts",
            "http://hooks.example.com/x": "must begin with https",
            "https://me:word@hooks.example.com/": "without a user",
            "https://hooks.example.com:8443/": "none of the hosts",
            "file:///etc/passwd": "must be https",
            "nonsense": "must be https",
            "https://hooks.example.com/" + "a" * 2000: "longer than 2,000",
        }.items():
            with pytest.raises(openai.BadRequestError, match=words) as caught:
                await service.submit([line("a")], extra_body={"webhook_url": url})
            assert caught.value.param == "webhook_url"
    async with serve(tmp_path / "other") as service:
        with pytest.raises(openai.BadRequestError, match="no host is allowed"):
            await service.submit([line("a")], extra_body={"webhook_url": "https://a.example/"})
        assert not (tmp_path / "other" / "webhook.secret").exists()


async def test_a_name_that_leads_to_this_machine_is_not_called(tmp_path: Path) -> None:
    async with receiver() as hook:
        rules = {"webhook_hosts": f"localhost:{hook.port}"}
        async with serve(tmp_path / "b", **rules) as service:
            url = f"https://localhost:{hook.port}/hook"
            batch = await service.submit([line("a")], extra_body={"webhook_url": url})
            await service.finish(batch.id)
            await asyncio.sleep(0.5)

            async def problems(db: Any) -> list[str]:
                rows = await db.execute_fetchall("SELECT error FROM webhooks")
                return [row["error"] for row in rows]

            [problem] = await service.store.db.read(problems)
            assert "no public address" in problem
        assert not hook.calls


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "fe80::1%eth0", "0.0.0.0"],
)
def test_addresses_of_this_machine_and_its_network(address: str) -> None:
    rules = AllowedHosts(("*",))
    with pytest.raises(NotAllowed, match="no public address"):
        rules.check_address(address)
    with pytest.raises(NotAllowed, match="no public address"):
        rules.check_address(f"::ffff:{address}" if "." in address else address)
    AllowedHosts(("*",), private=True).check_address(address)
    AllowedHosts(("*",)).check_address("93.184.215.14")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[fec0::1]", "[::127.0.0.1]", "a b.example", "b\u00fccher.example"],
)
def test_no_other_spelling_of_a_host_is_taken(host: str) -> None:
    with pytest.raises(NotAllowed):
        AllowedHosts(("*",)).check(f"https://{host}/hook")


def test_numbers_that_are_no_address_are_no_host() -> None:
    with pytest.raises(NotAllowed, match="neither a name nor an address"):
        AllowedHosts(("*",)).check("https://12345/hook")


def test_addresses_outside_may_be_called() -> None:
    for host in (
        "93.184.215.14",
        "[2606:4700::1111]",
        "hooks.example.com",
        "xn--bcher-kva.example",
    ):
        AllowedHosts(("*",)).check(f"https://{host}/hook")


async def test_a_call_that_cannot_be_noted_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_NOTE_SECONDS", 0.05)
    real, fails = webhooks.webhook_table.delivered, 5

    async def full(*args: Any) -> None:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise sqlite3.OperationalError("database or disk is full")
        await real(*args)

    monkeypatch.setattr(webhooks.webhook_table, "delivered", full)
    async with receiver() as hook, serve(tmp_path / "b", **local(hook)) as service:
        batch = await service.submit([line("a")], extra_body={"webhook_url": hook.url})
        await service.finish(batch.id)
        for _ in range(200):
            if fails < 0:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert (fails, len(hook.calls)) == (-1, 1)


async def test_one_that_is_slow_keeps_no_other_waiting(tmp_path: Path) -> None:
    async with receiver() as hook, serve(tmp_path / "b", **local(hook)) as service:
        take = hook.take

        async def slow(request: web.Request) -> web.Response:
            if request.path == "/slow":
                await asyncio.sleep(3)
            return await take(request)

        hook.take = slow  # type: ignore[method-assign]
        first = await service.submit(
            [line("a")], extra_body={"webhook_url": hook.url.replace("/hook", "/slow")}
        )
        await service.finish(first.id)
        second = await service.submit([line("a")], extra_body={"webhook_url": hook.url})
        await service.finish(second.id)
        await hook.wait_for(1)
        assert json.loads(hook.calls[0][1])["data"]["id"] == second.id


def test_which_hosts_a_list_allows() -> None:
    rules = AllowedHosts.of("a.example, *.b.example, c.example:8443", private=False)
    for good in ("a.example", "A.example", "x.b.example", "c.example:8443"):
        rules.check(f"https://{good}/hook")
    for bad in ("b.example", "xb.example", "c.example", "a.example.evil", "a.example:81"):
        with pytest.raises(NotAllowed):
            rules.check(f"https://{bad}/hook")
    AllowedHosts.of("*", private=False).check("https://anywhere.example:9000/")
    for wrong in ("https://a", "a:b", "a:0", "*a", "a*", "a/b"):
        with pytest.raises(ValueError, match="--batch-webhook-hosts"):
            BatchSettings(Path(), webhook_hosts=wrong)


def test_a_secret_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert secret_in(path) == secret_in(path)
    path.write_text("nothing of the kind!\n")
    with pytest.raises(ValueError, match="holds no secret"):
        secret_in(path)
