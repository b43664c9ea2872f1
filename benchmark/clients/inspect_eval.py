"""Inspect: an evaluation whose model calls go through the batch API."""

import tempfile

from cycle import MODEL, QUESTIONS, expect, reported
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import BatchConfig, GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

with reported("inspect-ai") as report:
    batched = GenerateConfig(
        batch=BatchConfig(size=len(QUESTIONS), send_delay=2, tick=1),
        max_tokens=8,
        temperature=0,
        max_retries=0,
    )
    model = get_model(f"openai/{MODEL}", config=batched, responses_api=False)
    task = Task(
        dataset=[Sample(input=text, target="a") for text in QUESTIONS],
        solver=generate(),
        scorer=includes(),
    )
    with report.step("upload", "create", "wait"):
        (log,) = eval(task, model=model, log_dir=tempfile.mkdtemp(), display="none")
        expect(log.error.message if log.error else None, None, "error of the evaluation")
        expect(log.status, "success", "status of the evaluation")
    with report.step("results"):
        outputs = [one.output.completion for one in log.samples or []]
        report.answers = len(outputs)
        expect(len(outputs), len(QUESTIONS), "answers")
        expect(all(outputs), True, "answers have text")
    report.note = "an evaluation of its own; has no list, cancel and delete"
