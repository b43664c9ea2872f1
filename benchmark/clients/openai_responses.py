"""The official Python client, with a batch of ``/v1/responses``."""

import json

from cycle import MODEL, expect, jsonl, reported, wait
from openai import OpenAI
from openai.types.responses import Response

QUESTIONS = {"colour": "Name a colour.", "bird": "Name a bird.", "river": "Name a river."}
GIVEN = {"temperature": 0, "max_output_tokens": 16, "instructions": "Answer with one word."}


def line(custom_id: str, **body: object) -> dict[str, object]:
    """Return one request of a response."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": MODEL, **GIVEN, **body},
    }


with reported("openai") as report:
    client = OpenAI(max_retries=0, _strict_response_validation=True)
    lines = [line(name, input=text) for name, text in QUESTIONS.items()]
    lines.append(line("stored", input="Go on.", previous_response_id="resp_1"))
    with report.step("upload"):
        file = client.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch")
    with report.step("create"):
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
        )
    with report.step("wait"):
        wait(lambda: client.batches.retrieve(batch.id).status, "completed")
        batch = client.batches.retrieve(batch.id)
    with report.step("results"):
        text = client.files.content(batch.output_file_id or "").text
        results = {
            one["custom_id"]: one["response"]["body"] for one in map(json.loads, text.splitlines())
        }
        report.answers = len(results)
        expect(sorted(results), sorted(QUESTIONS), "answered lines")
    with report.step("errors"):
        [failed] = map(
            json.loads, client.files.content(batch.error_file_id or "").text.splitlines()
        )
        report.errors = 1
        expect(failed["response"]["body"]["error"]["param"], "previous_response_id", "param")
    with report.step("types"):
        for body in results.values():
            Response.model_validate(body)
    with report.step("as online"):
        for name, question in QUESTIONS.items():
            online = client.responses.create(model=MODEL, input=question, **GIVEN)  # type: ignore[call-overload]
            found = Response.model_validate(results[name])
            expect(found.output_text, online.output_text, f"text of {name}")
