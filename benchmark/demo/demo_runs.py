"""One run of the demo batch under `sglang-blendserve run`: command line, files, answers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAX_TOTAL_TOKENS = 16_000
"""KV cache, in tokens: too small for the whole batch, so that the order of requests matters."""


def run_command(policy: str, args: argparse.Namespace, flags: list[str]) -> list[str]:
    """The command line of one run."""
    command = [sys.executable, "-m", "sglang.srt.blendserve.cli", "run", "--overwrite"]
    command += ["-i", str(args.input), "-o", str(file(args.out, policy, "out.jsonl"))]
    command += ["--errors", str(file(args.out, policy, "errors.jsonl"))]
    command += ["--summary", str(file(args.out, policy, "summary.json"))]
    return [*command, "--model-path", str(args.model_path), "--policy", policy, *flags]


def file(out: Path, policy: str, name: str) -> Path:
    """Where a run leaves the file ``name``."""
    return out / f"{policy}.{name}"


def read_answers(path: Path) -> dict[str, str]:
    """Text of each answer in an output file, by ``custom_id``."""
    texts = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(text)
        choice = entry["response"]["body"]["choices"][0]
        texts[entry["custom_id"]] = (
            choice["text"] if "text" in choice else choice["message"]["content"]
        )
    return texts
