"""Curator: prompts over a data set, in batch mode.

It cancels what an earlier process of the same data set has left open, so this script starts itself
once more, with the folder of that process as argument, and kills it.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bespokelabs import curator
from cycle import MODEL, QUESTIONS, SEPARATED, expect, reported, wait
from openai import OpenAI


def ask(prompts: list[str], folder: str, parameters: dict[str, Any], **how: Any) -> Any:
    """Return what Curator makes of these prompts; its state goes to ``folder``."""
    model = curator.LLM(
        model_name=MODEL,
        backend="openai",
        batch=True,
        generation_params={"temperature": 0, **parameters},
        backend_params={
            "base_url": os.environ["OPENAI_BASE_URL"],
            "api_key": os.environ["OPENAI_API_KEY"],
            "batch_check_interval": 1,
            # Its connections do not outlive its first event loop, so one retry is needed.
            "max_retries": 2,
        },
    )
    return model(prompts, working_dir=folder, **how)


def ask_much(folder: str, **how: Any) -> None:
    """Ask for what takes minutes."""
    ask([f"Count to {n}." for n in range(300)], folder, {"max_tokens": 500}, **how)


def submitted(folder: str, seconds: float = 120.0) -> str:
    """Return the id of the batch that Curator has noted in its folder, as soon as it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path in Path(folder).glob("*/batch_objects.jsonl"):
            with contextlib.suppress(ValueError):  # half written
                for batch_id in json.loads(path.read_text())["submitted_batches"]:
                    return str(batch_id)
        time.sleep(0.2)
    raise TimeoutError(f"no batch in {folder}")


def main() -> None:
    """Go through the cycle."""
    with reported("bespokelabs-curator") as report:
        report.note = "reads no error file; has no list"
        with report.step("upload", "create", "wait"):
            parameters = {"max_tokens": 32, "regex": SEPARATED}
            answer = ask(list(QUESTIONS), tempfile.mkdtemp(), parameters)
        with report.step("results"):
            texts = [one["response"] for one in answer.dataset]
            report.answers = len(texts)
            expect(texts, [SEPARATED] * len(QUESTIONS), "answers")
        with report.step("cancel"):
            folder = tempfile.mkdtemp()
            earlier = subprocess.Popen([sys.executable, __file__, folder])
            try:
                doomed = submitted(folder)
            finally:
                earlier.kill()
                earlier.wait()
            ask_much(folder, batch_cancel=True, batch_cancel_auto_confirm=True)
            wait(lambda: OpenAI().batches.retrieve(doomed).status, "cancelled")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ask_much(sys.argv[1])
    else:
        main()
