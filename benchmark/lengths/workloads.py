"""Workloads of the length evaluation: prompt lengths, true output lengths and prefix structure.

Prompts without text get random token ids behind one system prompt per trace, as in the paper's
workloads; MMLU has its 5-shot prefix per subject and GSM8K its 8-shot prefix. Texts are counted
in word pieces (words, digits, punctuation), close to but not the same as a tokenizer's count.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]

TRACES = Path(__file__).resolve().parent.parent / "traces"
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+|\n+")
_TAIL = 16
"""Tokens of a prompt's unshared part that are really made up; the rest only counts."""
_SYSTEM_PROMPT = 64


@dataclass(frozen=True)
class Workload:
    """n requests in the order of a file; all arrays (n,)."""

    name: str
    prompts: list[NDArray[np.int32]]
    """Shared part and the beginning of the unshared part of each prompt."""
    prompt_tokens: Ints
    output_tokens: Ints
    """True lengths: for the process and the errors, never for an estimator."""
    max_tokens: Ints
    job: Ints

    @property
    def size(self) -> int:
        """Number of requests."""
        return self.prompt_tokens.size

    def tree(self) -> PrefixTree:
        """The prefix tree, with prompts at their full lengths."""
        tree = PrefixTree.build(self.prompts)
        depth = tree.depth.copy()
        depth[tree.leaf_nodes] = self.prompt_tokens[tree.leaf_requests]
        return PrefixTree(tree.parent, depth, tree.subtree_end, tree.request, tree.requests)

    def sample(self, rng: np.random.Generator, share: float) -> Workload:
        """A random ``share`` of the requests, in their order."""
        keep = np.sort(rng.choice(self.size, round(share * self.size), replace=False))
        return self.take(keep)

    def take(self, keep: Ints) -> Workload:
        """The requests ``keep``, in this order."""
        return Workload(
            self.name,
            [self.prompts[i] for i in keep],
            self.prompt_tokens[keep],
            self.output_tokens[keep],
            self.max_tokens[keep],
            self.job[keep],
        )


def _rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(TRACES / name, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if ".csv" in name else [json.loads(x) for x in file]


def _pieces(text: str) -> NDArray[np.int32]:
    """Token ids of a text: a hash of each word piece."""
    ids = [zlib.crc32(piece.encode()) & 0x3FFFFFFF for piece in _PIECE.findall(text)]
    return np.array(ids, dtype=np.int32)


def _workload(
    name: str,
    prefixes: list[NDArray[np.int32]],
    tails: Ints,
    outputs: list[int],
    max_tokens: int,
    job: list[int] | None = None,
) -> Workload:
    """Requests of a prefix each and ``tails`` tokens of their own."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    prompts = [
        np.concatenate((prefix, rng.integers(1 << 30, 1 << 31, min(tail, _TAIL)).astype(np.int32)))
        for prefix, tail in zip(prefixes, tails.tolist(), strict=True)
    ]
    shared = np.array([prefix.size for prefix in prefixes])
    n = len(outputs)
    return Workload(
        name,
        prompts,
        shared + tails,
        np.array(outputs),
        np.full(n, max_tokens),
        np.zeros(n, dtype=np.int64) if job is None else np.array(job),
    )


def _lengths(name: str, file: str, max_tokens: int) -> Workload:
    """A trace of lengths behind one system prompt."""
    rows = _rows(file)
    prompt = np.array([int(r["input_tokens"]) for r in rows])
    system = _pieces(f"{name} " * _SYSTEM_PROMPT)
    tails = np.maximum(prompt - system.size, 1)
    outputs = [int(r["output_tokens"]) for r in rows]
    return _workload(name, [system] * len(rows), tails, outputs, max_tokens)


def azure_code() -> Workload:
    """Azure 2023, code service."""
    return _lengths("azure_code", "azure_code.csv.gz", 2048)


def azure_conv() -> Workload:
    """Azure 2023, conversation service."""
    return _lengths("azure_conv", "azure_conv.csv.gz", 1024)


def burstgpt() -> Workload:
    """BurstGPT."""
    return _lengths("burstgpt", "burstgpt_sample.csv.gz", 4096)


def sharegpt() -> Workload:
    """ShareGPT."""
    return _lengths("sharegpt", "sharegpt_lengths.csv.gz", 1024)


def reasoning() -> Workload:
    """Chain of thought of 8 model runs (jobs), one system prompt per benchmark."""
    rows = _rows("reasoning_lengths.csv.gz")
    models = sorted({r["model"] for r in rows})
    prefixes = [_pieces(f"{r['benchmark']} " * _SYSTEM_PROMPT) for r in rows]
    return _workload(
        "reasoning",
        prefixes,
        np.array([int(r["input_tokens"]) for r in rows]),
        [int(r["output_tokens"]) for r in rows],
        32768,
        [models.index(r["model"]) for r in rows],
    )


def mmlu() -> Workload:
    """MMLU with 5 shots per subject, one letter of answer, sorted by subject."""
    rows = _rows("mmlu.jsonl.gz")

    def question(row: dict[str, Any]) -> str:
        choices = "".join(f"\n{x}. {c}" for x, c in zip("ABCD", row["choices"], strict=True))
        return f"{row['question']}{choices}\nAnswer:"

    shots: dict[str, str] = {}
    for row in rows:
        if row["split"] == "dev":
            intro = f"Multiple choice questions (with answers) about {row['subject']}.\n\n"
            shots.setdefault(row["subject"], intro)
            shots[row["subject"]] += f"{question(row)} {row['answer']}\n\n"
    test = [row for row in rows if row["split"] == "test"]
    tails = np.array([_pieces(question(r)).size for r in test])
    return _workload(
        "mmlu", [_pieces(shots[r["subject"]]) for r in test], tails, [1] * len(test), 16
    )


def gsm8k() -> Workload:
    """GSM8K with 8 shots; the length of the reference answer."""
    rows = _rows("gsm8k.jsonl.gz")
    shots = _pieces(
        "".join(f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in rows[:8])
    )
    test = rows[8:]
    tails = np.array([_pieces(f"Question: {r['question']}\nAnswer:").size for r in test])
    outputs = [_pieces(r["answer"]).size for r in test]
    return _workload("gsm8k", [shots] * len(test), tails, outputs, 512)


def humaneval() -> Workload:
    """HumanEval; real prompts without a shared prefix, the length of the reference solution."""
    rows = _rows("HumanEval.jsonl.gz")
    prompts = [_pieces(r["prompt"]) for r in rows]
    outputs = [_pieces(r["canonical_solution"]).size for r in rows]
    return _workload("HumanEval", prompts, np.full(len(rows), 1), outputs, 512)


def _mix(name: str, parts: list[Workload], max_tokens: int | None, one_job: bool) -> Workload:
    """Several workloads in one file, shuffled; with one cap and one job if so wished."""
    job = np.concatenate([np.full(part.size, number) for number, part in enumerate(parts)])
    cap = np.concatenate([part.max_tokens for part in parts])
    whole = Workload(
        name,
        [prompt for part in parts for prompt in part.prompts],
        np.concatenate([part.prompt_tokens for part in parts]),
        np.concatenate([part.output_tokens for part in parts]),
        cap if max_tokens is None else np.full(cap.size, max_tokens),
        np.zeros_like(job) if one_job else job,
    )
    return whole.take(np.random.default_rng(zlib.crc32(name.encode())).permutation(whole.size))


def mix_chat() -> Workload:
    """Chat, questions and code in one job with one cap: only the prefix tree tells them apart."""
    parts = [azure_conv(), sharegpt(), mmlu(), gsm8k(), humaneval()]
    return _mix("mix_chat", parts, 1024, one_job=True)


def mix_api() -> Workload:
    """API traffic and code completion, a third MMLU: many short outputs, few long ones."""
    return _mix("mix_api", [burstgpt(), azure_code(), mmlu()], 4096, one_job=True)


def mix_reasoning() -> Workload:
    """Reasoning beside short answers, one job each with its own cap."""
    return _mix("mix_reasoning", [reasoning(), mmlu(), gsm8k()], None, one_job=False)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    make.__name__: make
    for make in (
        azure_code,
        azure_conv,
        burstgpt,
        sharegpt,
        reasoning,
        mmlu,
        gsm8k,
        humaneval,
        mix_chat,
        mix_api,
        mix_reasoning,
    )
}
