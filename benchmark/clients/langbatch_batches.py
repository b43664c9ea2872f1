"""LangBatch's OpenAI chat batch."""

import tempfile
from pathlib import Path
from typing import Any

from cycle import ANSWERED, SEPARATED, expect, jsonl, lines, long_lines, reported, wait
from langbatch.openai import OpenAIChatCompletionBatch
from openai import OpenAI

CLIENT = OpenAI(max_retries=0)


def batch_of(requests: list[dict[str, Any]]) -> OpenAIChatCompletionBatch:
    """Return a batch of a file of these requests."""
    path = Path(tempfile.mkdtemp()) / "lines.jsonl"
    path.write_bytes(jsonl(requests))
    return OpenAIChatCompletionBatch(str(path), client=CLIENT)


with reported("langbatch") as report:
    batch = batch_of(lines())
    with report.step("upload", "create"):
        batch.start()
    with report.step("wait"):
        wait(batch.get_status, "completed")
    with report.step("results", "errors"):
        good, bad = batch.get_results()
        report.answers, report.errors = len(good), len(bad)
        expect([one["custom_id"] for one in good], ANSWERED, "answered lines")
        expect(good[2]["choices"][0]["message"]["content"], SEPARATED, "answer")
        expect([one["custom_id"] for one in bad], ["bad"], "failed lines")
        expect(
            [one["custom_id"] for one in batch.get_unsuccessful_requests()],
            ["bad"],
            "requests to send again",
        )
    with report.step("cancel"):
        doomed = batch_of(long_lines())
        doomed.start()
        expect(doomed.cancel(), True, "cancel()")
        wait(doomed.get_status, "cancelled")
    report.note = "has no list and no delete"
