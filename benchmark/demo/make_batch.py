"""Write the demo batch, ``demo.jsonl``: the same bytes every time.

Three kinds of work that differ in what they ask of a machine:

- multiple-choice questions (MMLU): 5 worked examples shared by all questions of a subject, an
  answer of one letter. Almost all compute, and most of it shared.
- school mathematics (GSM8K): worked examples shared by all questions, an answer of a few lines.
- writing: a prompt of one line, an answer of hundreds of tokens. Almost all memory traffic.

The order is shuffled, as requests of several users arrive. The sources, ``mmlu.jsonl.gz``,
``gsm8k.jsonl.gz`` and ``writing.txt``, lie beside this file; docs/NOTICE.md names their licences.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BATCH = HERE / "demo.jsonl"
MODEL = "SmolLM2-135M-Instruct"
SEED = 20260101

MMLU_QUESTIONS = 12
"""Of each subject."""
MMLU_MAX_TOKENS = 4
GSM8K_QUESTIONS = 32
GSM8K_EXAMPLES = 5
GSM8K_MAX_TOKENS = 96
WRITING_MAX_TOKENS = 256
LONG_MAX_TOKENS = 768

Line = dict[str, Any]
"""One line of an OpenAI batch file."""


def batch_lines() -> list[Line]:
    """All lines of the demo batch, in the shuffled order of the file."""
    lines = [*mmlu(), *gsm8k(), *writing()]
    random.Random(SEED).shuffle(lines)
    return lines


def long_lines() -> list[Line]:
    """Writing with answers of up to 768 tokens beside the school mathematics: the answers decide
    how long the batch takes."""
    lines = [*gsm8k(), *writing(LONG_MAX_TOKENS)]
    random.Random(SEED).shuffle(lines)
    return lines


def mmlu() -> Iterator[Line]:
    """Each subject's test questions after its 5 worked examples, as chat requests."""
    rows = read_rows(HERE / "mmlu.jsonl.gz")
    for subject in sorted({row["subject"] for row in rows}):
        mine = [row for row in rows if row["subject"] == subject]
        examples = "".join(
            f"{mmlu_question(row)} {row['answer']}\n\n" for row in mine if row["split"] == "dev"
        )
        topic = subject.replace("_", " ")
        opening = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        questions = [row for row in mine if row["split"] == "test"][:MMLU_QUESTIONS]
        for index, row in enumerate(questions):
            text = opening + examples + mmlu_question(row)
            yield chat(f"mmlu-{subject}-{index:02d}", text, MMLU_MAX_TOKENS)


def mmlu_question(row: dict[str, Any]) -> str:
    """The question, its four choices, and the word that asks for the answer."""
    choices = (f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    return "\n".join([row["question"], *choices, "Answer:"])


def gsm8k() -> Iterator[Line]:
    """Problems after worked examples, as plain completions that stop at the next question."""
    rows = read_rows(HERE / "gsm8k.jsonl.gz")
    examples = "".join(
        f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
        for row in [row for row in rows if row["split"] == "train"][:GSM8K_EXAMPLES]
    )
    questions = [row for row in rows if row["split"] == "test"][:GSM8K_QUESTIONS]
    for index, row in enumerate(questions):
        body = {
            "model": MODEL,
            "prompt": f"{examples}Question: {row['question']}\nAnswer:",
            "max_tokens": GSM8K_MAX_TOKENS,
            "temperature": 0,
            "stop": ["Question:"],
        }
        yield line(f"gsm8k-{index:02d}", "/v1/completions", body)


def writing(max_tokens: int = WRITING_MAX_TOKENS) -> Iterator[Line]:
    """Prompts of one line that ask for long texts, as chat requests."""
    prompts = (HERE / "writing.txt").read_text(encoding="utf-8").splitlines()
    for index, prompt in enumerate(prompts):
        yield chat(f"writing-{index:02d}", prompt, max_tokens)


def chat(custom_id: str, text: str, max_tokens: int) -> Line:
    """A greedy chat request of one user message."""
    messages = [{"role": "user", "content": text}]
    body = {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
    return line(custom_id, "/v1/chat/completions", body)


def line(custom_id: str, url: str, body: dict[str, Any]) -> Line:
    """A line of an OpenAI batch file."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(text) for text in file]


def main() -> None:
    """Write the batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=BATCH, help="default: %(default)s")
    parser.add_argument("--long", action="store_true", help="long answers in place of the demo")
    args = parser.parse_args()
    lines = long_lines() if args.long else batch_lines()
    with args.output.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in lines)
    print(f"{len(lines)} requests, {args.output.stat().st_size:,} bytes: {args.output}")


if __name__ == "__main__":
    main()
