"""Make the batch *documents x questions*: the same bytes every time.

50 documents of about 600 words, and the same 6 short questions about each: 300 chat completions. A
prompt is the document, then the question, so that the 6 requests of a document share all but their
last line. The file has one of two orders:

- `questions`: all documents with the first question, then all with the second, and so on, as a loop
  over a table of questions writes it;
- `documents`: all questions about the first document, then about the second: what somebody does
  who knows of prefix caches.

The texts are passages of MMLU's questions on history, law and medicine (sources, judgments, cases),
each used once, stitched together within a subject until a document is full.

`--small` makes the form that `make demo` answers: 15 documents of about 150 words.

    python benchmark/documents/make_documents.py --order questions -o questions.jsonl
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "traces" / "mmlu.jsonl.gz"
MODEL = "SmolLM2-135M-Instruct"
SEED = 20261128
ORDERS = ("questions", "documents")


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the batch is.

    Attributes:
        documents: how many there are.
        words: fewest and most words of one; each number between is as likely as another.
        max_tokens: most tokens of an answer.
        kv_tokens: the KV cache that goes with it: a quarter to a third of the documents.
    """

    documents: int
    words: tuple[int, int]
    max_tokens: int
    kv_tokens: int


FULL = Shape(documents=50, words=(500, 700), max_tokens=32, kv_tokens=12_000)
SMALL = Shape(documents=15, words=(120, 180), max_tokens=12, kv_tokens=1_024)

QUESTIONS = (
    "What is the text above mainly about? Answer in one sentence.",
    "Name the people and places that the text above mentions.",
    "Which dates or years does the text above mention?",
    "What is the most important claim in the text above?",
    "Write a title of at most eight words for the text above.",
    "Is the tone of the text above neutral, positive or negative? Say why in one sentence.",
)
SUBJECTS = (
    "high_school_european_history",
    "high_school_world_history",
    "high_school_us_history",
    "professional_law",
    "professional_medicine",
)
LEAST_WORDS = 40
"""A shorter passage is a bare question and no text."""

Line = dict[str, Any]
"""One line of an OpenAI batch file."""


def batch_lines(order: str, shape: Shape = FULL) -> list[Line]:
    """All lines of the batch in one of `ORDERS`; both orders hold the same lines.

    Raises:
        ValueError: no such order.
    """
    texts = document_texts(shape)
    pairs = [(text, question) for text in range(len(texts)) for question in range(len(QUESTIONS))]
    if order == "questions":
        pairs.sort(key=lambda pair: (pair[1], pair[0]))
    elif order != "documents":
        raise ValueError(f"order {order!r}; one of {', '.join(ORDERS)}")
    return [
        chat(
            f"document-{text:02d}-question-{question}",
            f"{texts[text]}\n\n{QUESTIONS[question]}",
            shape.max_tokens,
        )
        for text, question in pairs
    ]


def document_texts(shape: Shape = FULL) -> list[str]:
    """The documents in a shuffled order; each passage is in one of them at most.

    Raises:
        ValueError: the source has too few passages for so many.
    """
    random_ = random.Random(SEED)
    documents: list[str] = []
    for subject, mine in passages().items():
        random_.shuffle(mine)
        parts: list[str] = []
        room = random_.randint(*shape.words)
        for passage in mine:
            parts.append(first_words(passage, room))
            room -= len(parts[-1].split())
            if room == 0:
                title = subject.replace("_", " ").capitalize()
                documents.append("\n\n".join([f"{title}, text {len(documents) + 1}", *parts]))
                parts = []
                room = random_.randint(*shape.words)
    random_.shuffle(documents)
    if len(documents) < shape.documents:
        raise ValueError(f"{SOURCE.name} gives {len(documents)} documents, not {shape.documents}")
    return documents[: shape.documents]


def first_words(text: str, count: int) -> str:
    """The first ``count`` words of ``text`` with the white space between them."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text if len(ends) <= count else text[: ends[count - 1]]


def passages() -> dict[str, list[str]]:
    """The distinct texts of each subject, in the order of the source.

    Several questions of MMLU stand after the same text; only the first of these is taken.
    """
    with gzip.open(SOURCE, "rt", encoding="utf-8") as file:
        rows = [json.loads(text) for text in file]
    found: dict[str, list[str]] = {}
    for subject in SUBJECTS:
        seen: dict[str, str] = {}
        for row in rows:
            if row["subject"] != subject:
                continue
            text = (
                row["question"]
                .removeprefix("This question refers to the following information.")
                .strip()
            )
            words = text.split()
            if len(words) >= LEAST_WORDS:
                seen.setdefault(" ".join(words[:8]), text)
        found[subject] = list(seen.values())
    return found


def chat(custom_id: str, text: str, max_tokens: int) -> Line:
    """A greedy chat request of one user message."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_batch(target: Path, order: str, shape: Shape = FULL) -> int:
    """Write the batch to ``target``, whose folder exists; returns its number of lines."""
    lines = batch_lines(order, shape)
    with target.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return len(lines)


def main() -> None:
    """Write the batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--order", choices=ORDERS, default="questions")
    parser.add_argument("--small", action="store_true", help="the form that `make demo` answers")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    count = write_batch(args.output, args.order, SMALL if args.small else FULL)
    print(f"{count} requests, {args.output.stat().st_size:,} bytes: {args.output}")


if __name__ == "__main__":
    main()
