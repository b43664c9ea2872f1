"""The official client against the service: every call, every field, every kind of error.

The client checks each answer against its own types (strict response validation).
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import openai
import pytest
from scripted import MODEL, ScriptedEngine, jsonl, line, serve

pytestmark = pytest.mark.anyio


async def test_upload_create_poll_download(directory: Path) -> None:
    async with serve(directory, ScriptedEngine(refused=frozenset("b"))) as service:
        content = jsonl([line("a", "one"), line("b"), line("c", "three", url="/v1/nothing")])
        file = await service.client.files.create(file=("my.jsonl", content), purpose="batch")
        assert (file.filename, file.bytes, file.purpose) == ("my.jsonl", len(content), "batch")
        batch = await service.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/completions",
            completion_window="24h",
            metadata={"night": "monday"},
        )
        assert batch.status == "validating"
        assert batch.expires_at == batch.created_at + 86400

        batch = await service.finish(batch.id)

        assert batch.status == "completed"
        assert batch.model == MODEL
        assert batch.metadata == {"night": "monday"}
        assert batch.input_file_id == file.id
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (3, 1, 2)
        assert batch.usage is not None
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (3, 2)
        assert batch.usage.input_tokens_details.cached_tokens == 1
        assert batch.usage.total_tokens == 5
        assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        assert (batch.failed_at, batch.cancelled_at, batch.expired_at) == (None, None, None)
        assert batch.errors is not None
        assert batch.errors.data is not None
        [error] = batch.errors.data
        assert (error.code, error.line, error.param) == ("unsupported_url", 3, "url")
        output, errors = await service.result_lines(batch)
        [ok] = output
        assert ok["custom_id"] == "a"
        assert ok["error"] is None
        assert ok["response"]["status_code"] == 200
        assert ok["response"]["body"]["choices"] == [{"text": "one"}]
        refused, invalid = errors
        assert refused["custom_id"] == "b"
        assert refused["error"] is None
        assert refused["response"]["status_code"] == 400
        assert invalid["custom_id"] == "c"
        assert invalid["response"] is None
        assert invalid["error"]["code"] == "unsupported_url"


async def test_results_are_files_in_the_order_of_the_input(directory: Path) -> None:
    async def backwards(request: object) -> None:
        await asyncio.sleep(0.05 - 0.005 * int(request.custom_id))

    async with serve(directory, ScriptedEngine(backwards)) as service:
        batch = await service.submit(
            [line(str(n)) for n in range(8)],
            output_expires_after={"anchor": "created_at", "seconds": 3600},
        )
        batch = await service.finish(batch.id)
        output, _ = await service.result_lines(batch)
        assert [one["custom_id"] for one in output] == [str(n) for n in range(8)]
        assert batch.output_file_id is not None
        assert batch.error_file_id is None
        file = await service.client.files.retrieve(batch.output_file_id)
        assert file.purpose == "batch_output"
        assert file.filename == f"{batch.id}_output.jsonl"
        assert file.expires_at == file.created_at + 3600
        with pytest.raises(openai.BadRequestError, match="purpose 'batch_output'"):
            await service.client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )


async def test_counts_move_while_the_batch_runs(directory: Path) -> None:
    gate = asyncio.Event()

    async def second_waits(request: object) -> None:
        if request.custom_id == "b":
            await gate.wait()

    async with serve(directory, ScriptedEngine(second_waits)) as service:
        batch = await service.submit([line("a"), line("b")])
        for _ in range(200):
            batch = await service.client.batches.retrieve(batch.id)
            assert batch.request_counts is not None
            if batch.request_counts.completed == 1:
                break
            await asyncio.sleep(0.02)
        assert batch.status == "in_progress"
        assert batch.request_counts.total == 2
        assert batch.output_file_id is None
        gate.set()
        batch = await service.finish(batch.id)
        assert batch.status == "completed"


async def test_cancel_keeps_what_is_finished(directory: Path) -> None:
    async def only_first(request: object) -> None:
        if request.custom_id != "0":
            await asyncio.Event().wait()

    engine = ScriptedEngine(only_first)
    async with serve(directory, engine) as service:
        batch = await service.submit([line(str(n)) for n in range(5)])
        while not (await service.client.batches.retrieve(batch.id)).request_counts.completed:
            await asyncio.sleep(0.02)
        began = time.monotonic()
        cancelling = await service.client.batches.cancel(batch.id)
        assert cancelling.status == "cancelling"
        assert cancelling.cancelling_at is not None
        batch = await service.finish(batch.id)
        assert time.monotonic() - began < 10
        assert batch.status == "cancelled"
        assert batch.request_counts.model_dump() == {"total": 5, "completed": 1, "failed": 4}
        output, errors = await service.result_lines(batch)
        assert [one["custom_id"] for one in output] == ["0"]
        assert [one["custom_id"] for one in errors] == ["1", "2", "3", "4"]
        assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
        again = await service.client.batches.cancel(batch.id)
        assert again.status == "cancelled"
        assert service.runner._pool.in_flight == 0


async def test_a_completed_batch_cannot_be_cancelled(directory: Path) -> None:
    async with serve(directory) as service:
        batch = await service.submit([line("a")])
        await service.finish(batch.id)
        with pytest.raises(openai.ConflictError, match="status 'completed'"):
            await service.client.batches.cancel(batch.id)


async def test_lists_page_through_everything_newest_first(directory: Path) -> None:
    async with serve(directory) as service:
        made = [(await service.submit([line("a")])).id for _ in range(5)]
        listed = [batch.id async for batch in service.client.batches.list(limit=2)]
        assert listed == made[::-1]
        page = await service.client.batches.list(limit=2)
        assert page.has_more
        assert [batch.id for batch in page.data] == made[:-3:-1]
        for batch_id in made:
            await service.finish(batch_id)
        inputs = [file.id async for file in service.client.files.list(purpose="batch", limit=3)]
        assert len(inputs) == 5
        forward = [f.id async for f in service.client.files.list(purpose="batch", order="asc")]
        assert forward == inputs[::-1]
        outputs = [f async for f in service.client.files.list(purpose="batch_output")]
        assert len(outputs) == 5
        everything = [file.id async for file in service.client.files.list(limit=4)]
        assert len(everything) == len(set(everything)) == 10


async def test_deleting_a_file_does_not_disturb_a_batch(directory: Path) -> None:
    gate = asyncio.Event()

    async def wait(_: object) -> None:
        await gate.wait()

    async with serve(directory, ScriptedEngine(wait)) as service:
        batch = await service.submit([line(str(n)) for n in range(200)])
        deleted = await service.client.files.delete(batch.input_file_id)
        assert deleted.deleted
        with pytest.raises(openai.NotFoundError):
            await service.client.files.retrieve(batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            await service.client.files.content(batch.input_file_id)
        gate.set()
        batch = await service.finish(batch.id)
        assert batch.status == "completed"
        assert batch.request_counts.completed == 200


BAD_FILES = {
    "empty": (b"", "empty_file", 0),
    "blank lines": (b"\n \n", "empty_file", 0),
    "too many": (jsonl([line(str(n)) for n in range(11)]), "too_many_tasks", 0),
    "no line is JSON": (b"{\n]\n", "invalid_json_line", 2),
}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_a_file_without_any_request_fails_validation(directory: Path, name: str) -> None:
    content, code, failed = BAD_FILES[name]
    async with serve(directory, max_requests=10) as service:
        batch = await service.finish((await service.submit(content)).id)
        assert batch.status == "failed"
        assert batch.failed_at is not None
        assert batch.errors is not None
        assert batch.errors.object == "list"
        assert batch.errors.data is not None
        assert batch.errors.data[0].code == code
        assert batch.errors.data[0].message
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (failed, 0, failed)
        _, errors = await service.result_lines(batch)
        assert len(errors) == failed


BAD_BATCHES = [
    ({"input_file_id": "file-0"}, "input_file_id", "No such File"),
    ({"input_file_id": "../../etc/passwd"}, "input_file_id", "No such File"),
    ({"endpoint": "/v1/images"}, "endpoint", "supported are"),
    ({"endpoint": "/v1/embeddings"}, "endpoint", "does not do /v1/embeddings"),
    ({"completion_window": "30m"}, "completion_window", "'1h' to '7d'"),
    ({"completion_window": "8d"}, "completion_window", "'1h' to '7d'"),
    ({"completion_window": "0h"}, "completion_window", "'1h' to '7d'"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
    ({"metadata": {"k" * 65: ""}}, "metadata.*", "at most 64"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k", "at most 512"),
    ({"metadata": {"k": 1}}, "metadata.k", "valid string"),
    ({"metadata": []}, "metadata", "Input should be an object"),
    ({"output_expires_after": 5}, "output_expires_after", "Input should be an object"),
    (
        {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
        "output_expires_after.seconds",
        "Expected a value >= 3600",
    ),
    ({"extra_body": {"model": "m"}}, "model", "Unknown parameter: 'model'"),
]


@pytest.mark.parametrize(("change", "param", "message"), BAD_BATCHES)
async def test_a_batch_that_cannot_be_is_a_400_that_says_why(
    directory: Path, change: dict[str, object], param: str, message: str
) -> None:
    async with serve(directory) as service:
        file = await service.client.files.create(file=("x", jsonl([line("a")])), purpose="batch")
        given = {"endpoint": "/v1/completions", "completion_window": "24h"}
        with pytest.raises(openai.BadRequestError) as caught:
            await service.client.batches.create(**({"input_file_id": file.id} | given | change))
        error = caught.value
        assert message in error.message
        assert error.type == "invalid_request_error"
        assert error.param == param or (param == "metadata.*" and "metadata" in error.param)
        assert [b async for b in service.client.batches.list()] == []


@pytest.mark.parametrize("window", ["1h", "24h", "168h", "7d"])
async def test_completion_windows(directory: Path, window: str) -> None:
    async with serve(directory) as service:
        batch = await service.submit([line("a")], completion_window=window)
        assert batch.completion_window == window
        seconds = int(window[:-1]) * {"h": 3600, "d": 86400}[window[-1]]
        assert batch.expires_at == batch.created_at + seconds
        await service.finish(batch.id)


async def test_unknown_ids_are_404(directory: Path) -> None:
    async with serve(directory) as service:
        for bad in ("nothing", "batch_" + "0" * 32, "batch_" + "0" * 33):
            with pytest.raises(openai.NotFoundError):
                await service.client.batches.retrieve(bad)
        for bad in ("nothing", "file-" + "0" * 32, "a" * 500):
            with pytest.raises(openai.NotFoundError):
                await service.client.files.retrieve(bad)
            with pytest.raises(openai.NotFoundError):
                await service.client.files.delete(bad)
        for path in (
            "/v1/files/..%2F..%2Fblendserve.db/content",
            "/v1/files/%2E%2E/content",
            "/v1/files/lock%00/content",
            f"/v1/files/file-{'0' * 32}%0A",
            f"/v1/batches/batch_{'0' * 32}%0A",
            "/v1/batches/%2Fetc%2Fpasswd",
        ):
            assert (await service.http.get(path)).status_code == 404, path


async def test_bad_queries_are_400(directory: Path) -> None:
    async with serve(directory) as service:
        for path in (
            "/v1/batches?limit=-1",
            "/v1/batches?limit=101",
            "/v1/batches?limit=x",
            "/v1/batches?after=batch_x",
            "/v1/files?order=up",
            "/v1/files?limit=10001",
            "/v1/files?after=file-x",
        ):
            response = await service.http.get(path)
            assert response.status_code == 400, path
            assert response.json()["error"]["type"] == "invalid_request_error"


async def test_files_can_expire(directory: Path) -> None:
    async with serve(directory) as service:
        file = await service.client.files.create(
            file=("x", b"x"),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert file.expires_at == file.created_at + 3600
        for bad in ({"anchor": "now", "seconds": 3600}, {"anchor": "created_at", "seconds": 1}):
            with pytest.raises(openai.BadRequestError, match="expires_after"):
                await service.client.files.create(
                    file=("x", b"x"), purpose="batch", expires_after=bad
                )
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await service.client.files.create(file=("x", b"x"), purpose="fine-tune")
        assert len([f async for f in service.client.files.list()]) == 1
