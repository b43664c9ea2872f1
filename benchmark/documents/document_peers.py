"""Who answers the batch: a policy of SGLang under `sglang-blendserve run`, or vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import vllm_batch
from document_cells import Cell, digests

BF16_DEFAULTS = "vllm-defaults"
"""vLLM without a flag for the precision."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A name, what it runs (a policy of SGLang's or `vllm`), and flags of its own."""

    name: str
    runs: str
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> Peer:
        """Read `NAME`, or `NAME=POLICY,FLAG,VALUE,...`, where the policy may be `vllm`."""
        if text == BF16_DEFAULTS:
            return cls(text, "vllm")
        name, equals, call = text.partition("=")
        if equals:
            runs, *flags = call.split(",")
            return cls(name, runs, tuple(flags))
        return cls(name, name, vllm_batch.best_flags() if name == "vllm" else ())


@dataclass(frozen=True, slots=True)
class Task:
    """What every peer gets.

    Attributes:
        batch: the file of requests.
        out: folder for answers, errors and logs.
        model: the model's folder.
        model_name: the name that the requests have for it.
        kv_tokens: size of the KV cache, tokens.
        vllm: the environment with vLLM.
        setting: what a cell says of all this.
    """

    batch: Path
    out: Path
    model: Path
    model_name: str
    kv_tokens: int
    vllm: Path
    setting: dict[str, object]


def setting_of(peer: Peer, task: Task) -> dict[str, object]:
    """What must be equal for two cells of the peer to be compared."""
    return {**task.setting, "kv_tokens": task.kv_tokens, "runs": peer.runs,
            "flags": list(peer.flags)}  # fmt: skip


def measure(peer: Peer, task: Task, round_: int, order: str) -> Cell:
    """Run one peer over the batch.

    Raises:
        RuntimeError: it ended with an error; the message has the end of what it wrote.
    """
    load = os.getloadavg()[0]
    run = _vllm if peer.runs == "vllm" else _sglang
    figures, texts = run(peer, task)
    return Cell(
        round=round_,
        order=order,
        peer=peer.name,
        setting=setting_of(peer, task),
        **figures,  # type: ignore[arg-type]
        load=round(load, 2),
        answers=digests(texts),
    )


def read_texts(path: Path) -> dict[str, str]:
    """Text of each answer in an output file, by ``custom_id``; lines with an error are left out."""
    texts = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(text)
        body = entry["response"]["body"]
        if body and body.get("choices"):
            texts[entry["custom_id"]] = body["choices"][0]["message"]["content"] or ""
    return texts


def _sglang(peer: Peer, task: Task) -> tuple[dict[str, object], dict[str, str]]:
    def file(name: str) -> Path:
        return task.out / f"{peer.name}.{name}"

    command = [sys.executable, "-m", "sglang.srt.blendserve.cli", "run", "--overwrite"]
    command += ["-i", str(task.batch), "-o", str(file("out.jsonl"))]
    command += ["--errors", str(file("errors.jsonl")), "--summary", str(file("summary.json"))]
    command += ["--model-path", str(task.model), "--policy", peer.runs]
    command += ["--max-total-tokens", str(task.kv_tokens), *peer.flags]
    run_quietly(command, file("log"))
    summary = json.loads(file("summary.json").read_text())
    kept = ("seconds", "startup_seconds", "completed", "failed", "input_tokens", "output_tokens",
            "cached_tokens", "retractions")  # fmt: skip
    figures = {name: summary[name] for name in kept}
    return figures | {"optimum": summary["prefix_sharing_optimum"]}, read_texts(file("out.jsonl"))


def _vllm(peer: Peer, task: Task) -> tuple[dict[str, object], dict[str, str]]:
    output = task.out / f"{peer.name}.out.jsonl"
    log = task.out / f"{peer.name}.log"
    command = vllm_batch.command(
        task.vllm, task.batch, output, task.model, task.model_name, task.kv_tokens, peer.flags
    )
    times = vllm_batch.run(command, log)
    usage = vllm_batch.read_usage(output)
    figures: dict[str, object] = {
        "seconds": times.seconds,
        "startup_seconds": times.startup_seconds,
        "completed": usage.completed,
        "failed": usage.failed,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "optimum": None,
        "retractions": None,
    }
    return figures, read_texts(output)


def run_quietly(command: Sequence[str], log: Path) -> None:
    """Run a command and keep what it writes; RuntimeError with the end of that if it fails."""
    with log.open("wb") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if status.returncode != 0:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{end}\nended with status {status.returncode}: {' '.join(command)}")
