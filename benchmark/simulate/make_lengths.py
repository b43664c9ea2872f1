"""Reduce ``benchmark/traces`` to the lengths that the simulator draws from.

    python benchmark/simulate/make_lengths.py

Writes ``simulator/data/*.csv.gz`` in the package, the same bytes each time. Lengths of the CSV
traces are copied; MMLU is text and its tokens are counted here as in ``benchmark/traces``: a
question with its four choices behind the five-shot prefix of its subject. The count is of word
pieces (words, digits, punctuation), scaled to the mean that the Qwen tokenizer gives (92.4 tokens
a question, 514.4 a prefix).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_TRACES = _ROOT / "benchmark" / "traces"
_DATA = _ROOT / "python" / "sglang" / "srt" / "blendserve" / "simulator" / "data"
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+|\n+")
_QUESTION_MEAN, _PREFIX_MEAN = 92.4, 514.4

_COPIED = {
    "burstgpt": "burstgpt_sample.csv.gz",
    "azure_conv": "azure_conv.csv.gz",
    "azure_code": "azure_code.csv.gz",
    "sharegpt": "sharegpt_lengths.csv.gz",
    "reasoning": "reasoning_lengths.csv.gz",
}


def _write(name: str, header: Sequence[str], rows: Iterable[Sequence[int]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    # mtime 0: the bytes depend on the content alone.
    (_DATA / f"{name}.csv.gz").write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _copy(name: str, source: str) -> None:
    with gzip.open(_TRACES / source, "rt", encoding="utf-8", newline="") as file:
        rows = [(int(r["input_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)]
    _write(name, ("input_tokens", "output_tokens"), rows)


def _pieces(text: str) -> int:
    return len(_PIECE.findall(text))


def _mmlu() -> None:
    with gzip.open(_TRACES / "mmlu.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    subjects = sorted({r["subject"] for r in rows})

    def shown(row: dict[str, str]) -> str:
        choices = "".join(f"\n{k}. {c}" for k, c in zip("ABCD", row["choices"], strict=True))
        return f"{row['question']}{choices}\nAnswer:"

    prefix = dict.fromkeys(subjects, 20.0)  # the sentence above the examples
    for row in rows:
        if row["split"] == "dev":
            prefix[row["subject"]] += _pieces(f"{shown(row)} {row['answer']}\n\n")
    questions = [(r["subject"], _pieces(shown(r))) for r in rows if r["split"] == "test"]
    per_question = _QUESTION_MEAN * len(questions) / sum(q for _, q in questions)
    per_prefix = _PREFIX_MEAN * len(subjects) / sum(prefix.values())
    table = []
    for subject, pieces in questions:
        before = round(prefix[subject] * per_prefix)
        own = max(round(pieces * per_question), 1)
        table.append((before + own, 1, subjects.index(subject), before))
    _write("mmlu", ("input_tokens", "output_tokens", "prefix_id", "prefix_tokens"), table)


def main() -> None:
    """Write all tables."""
    _DATA.mkdir(parents=True, exist_ok=True)
    for name, source in _COPIED.items():
        _copy(name, source)
    _mmlu()


if __name__ == "__main__":
    main()
