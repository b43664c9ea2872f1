"""Curator: prompts over a data set, in batch mode."""

import os
import tempfile

from bespokelabs import curator
from cycle import MODEL, QUESTIONS, SEPARATED, expect, reported

with reported("bespokelabs-curator") as report:
    model = curator.LLM(
        model_name=MODEL,
        backend="openai",
        batch=True,
        generation_params={"max_tokens": 32, "temperature": 0, "regex": SEPARATED},
        backend_params={
            "base_url": os.environ["OPENAI_BASE_URL"],
            "api_key": os.environ["OPENAI_API_KEY"],
            "batch_check_interval": 1,
            # Its connections do not outlive its first event loop, so one retry is needed.
            "max_retries": 2,
        },
    )
    with report.step("upload", "create", "wait"):
        answer = model(list(QUESTIONS), working_dir=tempfile.mkdtemp())
    with report.step("results"):
        texts = [one["response"] for one in answer.dataset]
        report.answers = len(texts)
        expect(texts, [SEPARATED] * len(QUESTIONS), "answers")
    report.note = "cancels only batches of an earlier process; has no list and no delete"
