"""Instructor's batch processor: answers that fit a Pydantic model."""

import tempfile
from pathlib import Path
from typing import Literal

from cycle import MODEL, QUESTIONS, expect, reported, wait
from instructor.batch import BatchProcessor
from pydantic import BaseModel


class Thing(BaseModel):
    """An answer, which the server must keep to: the schema goes along as a response format."""

    kind: Literal["colour", "bird", "river"]
    exists: bool


def messages(text: str) -> list[dict[str, str]]:
    """Return one conversation."""
    return [{"role": "user", "content": text}]


with reported("instructor") as report:
    processor = BatchProcessor(f"openai/{MODEL}", Thing)
    path = str(Path(tempfile.mkdtemp()) / "lines.jsonl")
    with report.step("upload", "create"):
        processor.create_batch_from_messages(
            [messages(one) for one in QUESTIONS], path, max_tokens=64, temperature=0.0
        )
        batch_id = processor.submit_batch(path)
    with report.step("wait"):
        wait(lambda: str(processor.get_batch_status(batch_id)["status"]), "completed")
    with report.step("results"):
        results = processor.retrieve_results(batch_id)
        things = [one.result for one in results if one.success]
        report.answers, report.errors = len(things), len(results) - len(things)
        expect([one.custom_id for one in results], [f"request-{n}" for n in range(3)], "lines")
        expect(all(isinstance(one, Thing) for one in things), True, "answers are Things")
        expect(report.answers, 3, "answers")
    with report.step("list"):
        found = [one.id for one in processor.list_batches(limit=1)]
        expect(batch_id in found, True, "in the list")
    with report.step("cancel"):
        many = [messages(f"Name thing {n}.") for n in range(300)]
        doomed = processor.submit_batch(
            processor.create_batch_from_messages(many, path, max_tokens=500)
        )
        processor.cancel_batch(doomed)
        wait(lambda: str(processor.get_batch_status(doomed)["status"]), "cancelled")
    report.note = (
        "answers by a JSON schema; reads no error file; "
        "its list fails where a batch has no metadata"
    )
