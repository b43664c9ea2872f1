"""The official Python client."""

import json

from cycle import (
    check_errors,
    check_output,
    expect,
    jsonl,
    lines,
    long_lines,
    reported,
    wait,
)
from openai import NotFoundError, OpenAI
from openai.types.chat import ChatCompletion

with reported("openai") as report:
    # Strict: an answer that does not fit the client's types is an exception.
    client = OpenAI(max_retries=0, _strict_response_validation=True)
    with report.step("upload"):
        file = client.files.create(
            file=("lines.jsonl", jsonl(lines())),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        file = client.files.wait_for_processing(file.id, poll_interval=1)
        expect(client.files.content(file.id).content, jsonl(lines()), "content of the input")
    with report.step("create"):
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"client": "openai"},
        )
    with report.step("wait"):
        wait(lambda: client.batches.retrieve(batch.id).status, "completed")
        batch = client.batches.retrieve(batch.id)
        expect(batch.metadata, {"client": "openai"}, "metadata")
    with report.step("results"):
        check_output(client.files.content(batch.output_file_id or "").text, report)
        with client.files.with_streaming_response.content(batch.output_file_id or "") as stream:
            streamed = [json.loads(one) for one in stream.iter_lines()]
        expect(len(streamed), report.answers, "lines by iter_lines()")
    with report.step("errors"):
        check_errors(client.files.content(batch.error_file_id or "").text, report)
    with report.step("list"):
        expect(batch.id in [one.id for one in client.batches.list(limit=1)], True, "in the list")
        found = [one.id for one in client.files.list(limit=1, purpose="batch_output")]
        expect(batch.output_file_id in found, True, "in the list of files")
    with report.step("cancel"):
        more = client.files.create(file=("long.jsonl", jsonl(long_lines())), purpose="batch")
        doomed = client.batches.create(
            input_file_id=more.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        expect(client.batches.cancel(doomed.id).status, "cancelling", "status")
        wait(lambda: client.batches.retrieve(doomed.id).status, "cancelled")
    with report.step("delete"):
        expect(client.files.delete(file.id).deleted, True, "deleted")
        try:
            client.files.retrieve(file.id)
        except NotFoundError:
            pass
        else:
            raise AssertionError("the deleted file is still there")
    with report.step("types"):
        # What typed clients do with each answer, in the official client's own types.
        for one in streamed:
            ChatCompletion.model_validate(one["response"]["body"])
