"""LiteLLM's batch and file functions, with its OpenAI provider."""

import os
from typing import Any

import litellm
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

WHERE: dict[str, Any] = {
    "custom_llm_provider": "openai",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
}


def submit(content: bytes) -> Any:
    """Upload a file and create a batch of it."""
    file = litellm.create_file(file=("lines.jsonl", content), purpose="batch", **WHERE)
    return litellm.create_batch(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **WHERE
    )


def status(batch_id: str) -> str:
    """Return the batch's status."""
    return str(litellm.retrieve_batch(batch_id, **WHERE).status)


def content(file_id: str) -> str:
    """Return a file's text."""
    return bytes(litellm.file_content(file_id, **WHERE).content).decode()


with reported("litellm") as report:
    with report.step("upload", "create"):
        batch = submit(jsonl(lines()))
    with report.step("wait"):
        wait(lambda: status(batch.id), "completed")
        batch = litellm.retrieve_batch(batch.id, **WHERE)
    with report.step("results"):
        check_output(content(batch.output_file_id), report)
    with report.step("errors"):
        check_errors(content(batch.error_file_id), report)
    with report.step("list"):
        found = [one.id for one in litellm.list_batches(limit=5, **WHERE).data]
        expect(batch.id in found, True, "in the list")
    with report.step("cancel"):
        doomed = submit(jsonl(long_lines()))
        litellm.cancel_batch(doomed.id, **WHERE)
        wait(lambda: status(doomed.id), "cancelled")
    with report.step("delete"):
        expect(litellm.file_delete(batch.input_file_id, **WHERE).deleted, True, "deleted")
