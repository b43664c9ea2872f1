"""Several keys: each user sees what is its own, has a fair share of the slots, and a quota.

pytest test/server/test_users.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import httpx
import openai
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from scripted import Held, ScriptedEngine, Service, jsonl, line, serve

from sglang.srt.blendserve.answering.line_source import InputScan
from sglang.srt.blendserve.answering.slots import Demand, next_user
from sglang.srt.blendserve.server import batch_settings, hooks
from sglang.srt.blendserve.server.batch_run import BatchRun
from sglang.srt.blendserve.server.users import read_users

pytestmark = pytest.mark.anyio

ALICE, BOB, OPERATOR = "alice-0123456789", "bob-0123456789abc", "operator-0123456789"


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    path = tmp_path / "users.toml"
    digest = sha256(BOB.encode()).hexdigest()
    path.write_text(
        f'[alice]\nkey = "{ALICE}"\nshare = 3\n\n'
        f'[bob]\nkey_sha256 = "{digest}"\nmax_open_requests = 12\n'
    )
    path.chmod(0o600)
    return path


class Keys:
    """The clients of a service."""

    def __init__(self, service: Service, script: Held) -> None:
        self.service, self.script = service, script
        self.operator = service.client
        self.alice, self.bob = (service.client.with_options(api_key=k) for k in (ALICE, BOB))

    async def submit(self, client: AsyncOpenAI, name: str, count: int) -> openai.types.Batch:
        content = jsonl([line(f"{name}{number}") for number in range(count)])
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        return await client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )

    async def ended(self, batch: openai.types.Batch) -> openai.types.Batch:
        self.script.let_end(1000)
        return await self.service.finish(batch.id)


def online(app: FastAPI) -> None:
    """Two routes of SGLang's, one that asks the model something and one that does not."""

    @app.get("/v1/models")
    @app.get("/flush_cache")
    async def answer() -> str:
        return "it is me"


@pytest.fixture
async def keys(directory: Path, users_file: Path) -> AsyncIterator[Keys]:
    script = Held()
    async with serve(
        directory,
        ScriptedEngine(script),
        prepare=online,
        api_key=OPERATOR,
        users_file=str(users_file),
        max_in_flight=8,
    ) as service:
        yield Keys(service, script)
        script.let_end(1000)


async def test_each_sees_its_own_and_the_operator_all(keys: Keys) -> None:
    mine, theirs = await keys.submit(keys.alice, "a", 2), await keys.submit(keys.bob, "b", 2)
    assert (mine.model_extra or {})["owner"] == "alice"
    mine, theirs = await keys.ended(mine), await keys.ended(theirs)
    for client, own, other in ((keys.alice, mine, theirs), (keys.bob, theirs, mine)):
        assert [batch.id async for batch in client.batches.list()] == [own.id]
        files = {file.id async for file in client.files.list()}
        assert files == {own.input_file_id, own.output_file_id}
        assert await client.files.content(str(own.output_file_id))
        for refused in (
            client.batches.retrieve(other.id),
            client.batches.cancel(other.id),
            client.files.retrieve(other.input_file_id),
            client.files.delete(str(other.output_file_id)),
            client.files.content(str(other.output_file_id)),
            client.get(f"/batches/{other.id}/errors", cast_to=object),
            client.post(f"/batches/{other.id}", cast_to=object, body={"paused": True}),
            client.post(f"/batches/{other.id}/retry", cast_to=object),
        ):
            with pytest.raises(openai.NotFoundError):
                await refused
        with pytest.raises(openai.BadRequestError, match="No such File"):
            await client.batches.create(
                input_file_id=other.input_file_id,
                endpoint="/v1/completions",
                completion_window="24h",
            )
    assert [batch.id async for batch in keys.operator.batches.list()] == [theirs.id, mine.id]
    assert await keys.operator.files.content(str(mine.output_file_id))
    assert await keys.alice.files.delete(mine.input_file_id)


async def page(keys: Keys, path: str, key: str) -> httpx.Response:
    return await keys.service.http.get(path, headers={"authorization": f"Bearer {key}"})


async def test_pages_show_what_is_one_s_own(keys: Keys) -> None:
    mine, theirs = await keys.submit(keys.alice, "a", 1), await keys.submit(keys.bob, "b", 1)
    listed = (await page(keys, "/batches", ALICE)).text
    assert mine.id in listed
    assert theirs.id not in listed
    assert (await page(keys, f"/batches/{theirs.id}", ALICE)).status_code == 404
    assert theirs.id in (await page(keys, "/batches", OPERATOR)).text


async def test_a_key_opens_what_asks_the_model_and_nothing_else(keys: Keys) -> None:
    assert (await page(keys, "/v1/models", ALICE)).status_code == 200
    assert (await page(keys, "/flush_cache", ALICE)).status_code == 401
    assert (await page(keys, "/flush_cache", OPERATOR)).status_code == 200
    for key in ("alice", ALICE + "x", "", sha256(BOB.encode()).hexdigest()):
        assert (await page(keys, "/v1/batches", key)).status_code == 401


async def test_idempotency_keys_are_one_s_own(keys: Keys) -> None:
    created = []
    for client in (keys.alice, keys.bob, keys.operator, keys.alice):
        content = jsonl([line("a")])
        name = f"{len(created) % 3}.jsonl"
        file = await client.files.create(file=(name, content), purpose="batch")
        if len(created) == 3:
            batch = await client.batches.retrieve(created[0])
            file = await client.files.retrieve(batch.input_file_id)
        made = await client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/completions",
            completion_window="24h",
            extra_headers={"Idempotency-Key": "once"},
        )
        created.append(made.id)
    assert len(set(created)) == 3
    assert created[3] == created[0]


async def test_a_quota_counts_what_has_no_result(keys: Keys) -> None:
    first = await keys.submit(keys.bob, "b", 10)
    too_many = await keys.submit(keys.bob, "c", 5)
    too_many = await keys.service.finish(too_many.id)
    assert too_many.status == "failed"
    assert too_many.errors is not None
    assert too_many.errors.data is not None
    [error] = too_many.errors.data
    assert error.code == "quota_exceeded"
    assert "15 requests" in str(error.message)
    second = await keys.submit(keys.bob, "d", 2)
    while (await keys.bob.batches.retrieve(second.id)).status == "validating":
        await asyncio.sleep(0.01)
    with pytest.raises(openai.RateLimitError, match=r"13 requests"):
        await keys.submit(keys.bob, "e", 1)
    await keys.submit(keys.alice, "a", 30)  # no limit of hers
    for batch in (first, second):
        assert (await keys.ended(batch)).status == "completed"
    assert (await keys.ended(await keys.submit(keys.bob, "f", 12))).status == "completed"


async def test_slots_are_shared_by_users_and_not_by_batches(keys: Keys) -> None:
    """Three shares of eight slots are six, however many batches and what priority others have."""
    for number in range(4):
        await keys.submit(keys.bob, f"b{number}-", 3)
    await keys.submit(keys.alice, "a", 60)
    for _ in range(7):
        await asyncio.sleep(0.05)
        keys.script.let_end(1)
    await asyncio.sleep(0.05)
    running = keys.service.runner._pool._of_user
    assert (running["alice"], running["bob"]) == (6, 2)


async def test_slots_that_come_free_together_are_shared_by_users(keys: Keys) -> None:
    """Between two of its lines a batch waits for no slot, and others must not get them all."""
    for number in range(4):
        await keys.submit(keys.operator, f"o{number}-", 50)
    await keys.submit(keys.alice, "a", 100)
    await asyncio.sleep(0.2)
    for _ in range(4):
        keys.script.let_end(8)
        await asyncio.sleep(0.2)
    running = keys.service.runner._pool._of_user
    assert (running["alice"], running[None]) == (6, 2)


async def test_two_files_that_are_read_together_count_together(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the number of lines of the first is still being written down."""
    begin = BatchRun._begin

    async def later(run: BatchRun, found: InputScan) -> None:
        await asyncio.sleep(0.3)
        await begin(run, found)

    monkeypatch.setattr(BatchRun, "_begin", later)
    both = await asyncio.gather(keys.submit(keys.bob, "b", 10), keys.submit(keys.bob, "c", 10))
    await asyncio.sleep(0.5)
    keys.script.let_end(100)
    ended = [(await keys.service.finish(batch.id)).status for batch in both]
    assert sorted(ended) == ["completed", "failed"]


async def test_pages_of_a_list_begin_behind_one_s_own(keys: Keys) -> None:
    mine, theirs = await keys.submit(keys.alice, "a", 1), await keys.submit(keys.bob, "b", 1)
    for path in (f"/v1/batches?after={theirs.id}", f"/v1/files?after={theirs.input_file_id}"):
        assert (await page(keys, path, ALICE)).status_code == 400
        assert (await page(keys, path, OPERATOR)).status_code == 200
    assert (await page(keys, f"/v1/batches?after={mine.id}", ALICE)).status_code == 200


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10)), min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 50)),
)
def test_the_next_slot_is_for_who_has_least_for_its_share(
    jobs: list[tuple[str, float]], running: dict[str | None, int]
) -> None:
    shares = dict(jobs)
    demands = [Demand(1, 0, 60.0, user=user, share=shares[user]) for user, _ in jobs]
    chosen = next_user(demands, running)
    has = {user: running.get(user, 0) / share for user, share in shares.items()}
    assert has[str(chosen)] == min(has.values())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names no user"),
        ("[a", "is no TOML"),
        ('key = "x"', "is no table"),
        ('["a b"]\nkey = "0123456789abcdef"', "a name has letters"),
        ("[a]\nshare = 2", "give key, or key_sha256"),
        ('[a]\nkey = "short"', "16 characters"),
        ('[a]\nkey_sha256 = "12"', "64 hexadecimal"),
        ('[a]\nkey = "0123456789abcdef"\nshare = 0', "share is 0"),
        ('[a]\nkey = "0123456789abcdef"\nmax_open_requests = true', "max_open_requests is True"),
        ('[a]\nkey = "0123456789abcdef"\nquota = 1', "quota is unknown"),
        ('[a]\nkey = "0123456789abcdef"\n[b]\nkey = "0123456789abcdef"', "has the key of [a]"),
    ],
)
def test_what_is_wrong_with_a_users_file_is_said(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "users.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r".+") as raised:
        read_users(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_users_without_a_key_of_the_operator_are_refused(
    users_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    settings = batch_settings.BatchSettings(users_file=str(users_file))
    monkeypatch.setattr(batch_settings, "current", lambda: settings)
    with pytest.raises(SystemExit, match="Give --api-key"):
        hooks._users(SimpleNamespace(api_key=None))
    with pytest.raises(SystemExit, match=r"\[bob\] has the key of the operator"):
        hooks._users(SimpleNamespace(api_key=BOB))
    assert len(hooks._users(SimpleNamespace(api_key=OPERATOR))) == 2
