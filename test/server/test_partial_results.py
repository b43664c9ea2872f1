"""Results before a batch's end, errors by kind, retries, and a create that is sent twice.

Run: pytest test/server/test_partial_results.py
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch
from scripted import Held, ScriptedEngine, Service, line, serve

pytestmark = pytest.mark.anyio


async def page(service: Service, batch: Batch, **query: Any) -> httpx.Response:
    return await service.http.get(f"/v1/batches/{batch.id}/results", params=query)


async def errors(service: Service, batch: Batch) -> dict[str, Any]:
    answer = await service.http.get(f"/v1/batches/{batch.id}/errors")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def wait_for(service: Service, batch: Batch, results: int) -> None:
    for _ in range(500):
        counts = (await service.client.batches.retrieve(batch.id)).request_counts
        assert counts is not None
        if counts.completed + counts.failed >= results:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(counts)


def names(answer: httpx.Response) -> list[str]:
    return [json.loads(one)["custom_id"] for one in answer.text.splitlines()]


async def test_answers_are_there_before_the_end(directory: Path) -> None:
    gate = Held()
    async with serve(directory, ScriptedEngine(gate)) as service:
        batch = await service.submit([line(f"r{n}") for n in range(10)])
        empty = await page(service, batch)
        assert (empty.status_code, empty.text, empty.headers["X-Next-After"]) == (200, "", "0")
        gate.let_end(4)
        await wait_for(service, batch, 4)
        first = await page(service, batch, limit=3)
        assert len(names(first)) == 3
        assert first.headers["X-Complete"] == "false"
        assert first.headers["X-Batch-Status"] == "in_progress"
        second = await page(service, batch, after=first.headers["X-Next-After"])
        assert len({*names(first), *names(second)}) == 4
        nothing = await page(service, batch, after=second.headers["X-Next-After"])
        assert nothing.text == ""
        gate.let_end(5)
        await wait_for(service, batch, 9)
        third = await page(service, batch, after=nothing.headers["X-Next-After"])
        assert len({*names(first), *names(second), *names(third)}) == 9
        gate.let_end(1)
        ended = await service.finish(batch.id)
        assert ended.output_file_id
        over = await page(service, batch)
        assert (over.status_code, over.json()["error"]["code"]) == (409, "batch_has_ended")


async def test_they_are_there_after_a_restart(directory: Path) -> None:
    gate = Held(3)
    async with serve(directory, ScriptedEngine(gate)) as service:
        batch = await service.submit([line(f"r{n}") for n in range(6)])
        await wait_for(service, batch, 3)
        before = await page(service, batch)
    async with serve(directory, ScriptedEngine(Held())) as service:
        for _ in range(100):
            after = await page(service, batch)
            if after.text:
                break
            await asyncio.sleep(0.02)
        assert after.text == before.text


async def test_a_place_holds_while_the_journal_is_being_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Held(2)
    async with serve(directory, ScriptedEngine(gate)) as service:
        batch = await service.submit([line(f"r{n}") for n in range(4)])
        await wait_for(service, batch, 2)
        after = (await page(service, batch)).headers["X-Next-After"]
        monkeypatch.setattr(service.runner, "journal_size", lambda _: None)
        waiting = await page(service, batch, after=after)
        assert (waiting.status_code, waiting.text) == (200, "")
        assert waiting.headers["X-Next-After"] == after
        gate.let_end(2)
        await service.finish(batch.id)


async def test_a_place_that_no_page_has_named_is_refused(directory: Path) -> None:
    gate = Held(2)
    async with serve(directory, ScriptedEngine(gate)) as service:
        batch = await service.submit([line(f"r{n}") for n in range(4)])
        await wait_for(service, batch, 2)
        for after in (5, 10**9):
            refused = await page(service, batch, after=after)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")
        for bad in ({"after": -1}, {"limit": 0}, {"limit": 10_001}):
            assert (await page(service, batch, **bad)).status_code == 400
        absent = await service.http.get("/v1/batches/batch_" + "0" * 32 + "/results")
        assert absent.status_code == 404
        gate.let_end(2)
        await service.finish(batch.id)


async def test_errors_are_grouped_by_kind_before_and_after_the_end(directory: Path) -> None:
    gate, refused = Held(), frozenset(f"long{n}" for n in range(6))
    lines = [line(f"long{n}") for n in range(6)] + [line("good")]
    bad = b'{"custom_id": "x"}\n{"custom_id": "y"}\nnot JSON\n'
    content = b"".join(json.dumps(one).encode() + b"\n" for one in lines) + bad
    async with serve(directory, ScriptedEngine(gate, refused=refused)) as service:
        batch = await service.submit(content)
        gate.let_end(2)
        await wait_for(service, batch, 5)
        so_far = await errors(service, batch)
        assert not so_far["complete"]
        assert so_far["failed"] == 5
        gate.let_end(5)
        await service.finish(batch.id)
        found = await errors(service, batch)
        assert (found["complete"], found["failed"]) == (True, 9)
        assert found["batch_status"] == "completed"
        first = found["data"][0]
        assert (first["status_code"], first["code"], first["count"]) == (400, "400", 6)
        assert "too long" in first["message"]
        assert sorted(first["custom_ids"]) == [f"long{n}" for n in range(6)]
        kinds = {(one["code"], one["count"]): one["lines"] for one in found["data"]}
        assert kinds["missing_required_parameter", 2] == [8, 9]
        assert [one["lines"] for one in found["data"] if one["lines"] == [10]]


async def test_kinds_are_bounded(directory: Path) -> None:
    content = b"".join(b'{"custom_id": "%b", "x": 1}\n' % (b"a" * n) for n in range(1, 130))
    unlike = b"".join(
        json.dumps(line(f"r{n}", url=f"/{chr(97 + n % 26)}{chr(97 + n // 26)}")).encode() + b"\n"
        for n in range(120)
    )
    async with serve(directory) as service:
        batch = await service.submit(content + unlike)
        await service.finish(batch.id)
        found = await errors(service, batch)
        assert found["failed"] == 249
        assert len(found["data"]) <= 101
        assert sum(one["count"] for one in found["data"]) == 249


# --- the same create twice -----------------------------------------------------------------------


async def test_one_key_creates_one_batch(directory: Path) -> None:
    async with serve(directory) as service:
        file = await service.client.files.create(
            file=("in.jsonl", json.dumps(line("a")).encode()), purpose="batch"
        )

        async def create(key: str, window: str = "24h") -> Batch:
            return await service.client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/completions",
                completion_window=window,  # type: ignore[arg-type]
                extra_headers={"Idempotency-Key": key},
            )

        first, second = await asyncio.gather(create("key"), create("key"))
        assert first.id == second.id
        await service.finish(first.id)
        again = await create("key")
        assert (again.id, again.status) == (first.id, "completed")
        assert (await create("another")).id != first.id
        with pytest.raises(openai.UnprocessableEntityError, match="has created another batch"):
            await create("key", "48h")
        listed = await service.client.batches.list()
        assert len(listed.data) == 2
        with pytest.raises(openai.BadRequestError):
            await create("k" * 256)
    async with serve(directory) as service:
        again = await service.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/completions",
            completion_window="24h",
            extra_headers={"Idempotency-Key": "key"},
        )
        assert again.id == first.id


# --- retry ---------------------------------------------------------------------------------------


async def retried(service: Service, batch: Batch, **headers: str) -> httpx.Response:
    return await service.http.post(f"/v1/batches/{batch.id}/retry", headers=headers)


async def test_what_has_failed_is_tried_again_in_one_call(directory: Path) -> None:
    engine = ScriptedEngine(refused=frozenset(("b", "d")))
    async with serve(directory, engine) as service:
        lines = [line(name) for name in "abcd"]
        content = b"".join(json.dumps(one).encode() + b"\n" for one in lines) + b"not JSON"
        batch = await service.submit(content, metadata={"of": "me"})
        early = await retried(service, batch)
        if early.status_code != 200:  # it may have ended already
            assert early.json()["error"]["code"] == "batch_not_retryable"
        await service.finish(batch.id)
        engine.refused = frozenset()
        answer = await retried(service, batch, **{"Idempotency-Key": "once"})
        assert answer.status_code == 200, answer.text
        same = await retried(service, batch, **{"Idempotency-Key": "once"})
        assert same.json()["id"] == answer.json()["id"]
        again = await service.finish(answer.json()["id"])
        assert again.metadata == {"of": "me", "retry_of": batch.id}
        good, failed = await service.result_lines(again)
        assert sorted(one["custom_id"] for one in good) == ["b", "d"]
        assert [one["error"]["line"] for one in failed] == [3]


async def test_two_retries_at_once_make_one_batch_and_one_file(directory: Path) -> None:
    async with serve(directory, ScriptedEngine(refused=frozenset("b"))) as service:
        batch = await service.submit([line("b")])
        await service.finish(batch.id)
        key = {"Idempotency-Key": "k"}
        answers = await asyncio.gather(*(retried(service, batch, **key) for _ in range(4)))
        assert len({answer.json()["id"] for answer in answers}) == 1
        files = (await service.client.files.list()).data
        assert len([file for file in files if file.filename.startswith("retry-")]) == 1


async def test_a_retry_calls_nobody_who_is_not_called_any_more(directory: Path) -> None:
    engine = ScriptedEngine(refused=frozenset("b"))
    url = {"webhook_url": "https://hooks.example.com/x"}
    async with serve(directory, engine, webhook_hosts="hooks.example.com") as service:
        batch = await service.submit([line("b")], extra_body=url)
        await service.finish(batch.id)
    async with serve(directory, engine) as service:
        assert (await retried(service, batch)).status_code == 200


async def test_what_cannot_be_retried(directory: Path) -> None:
    async with serve(directory, ScriptedEngine(refused=frozenset("b"))) as service:
        fine = await service.submit([line("a")])
        failed = await service.submit([line("b")])
        for batch in (fine, failed):
            await service.finish(batch.id)
        await service.client.files.delete(failed.input_file_id)
        for batch, words in ((fine, "no line of it has failed"), (failed, "is gone")):
            answer = await retried(service, batch)
            assert answer.status_code == 409
            assert words in answer.json()["error"]["message"]
        files = (await service.client.files.list()).data
        assert not [file for file in files if file.filename.startswith("retry-")]
