"""Processor time to convert a line to an engine's request, with and without known token ids.

    python benchmark/dispatch/convert.py --lines 2000 --json out.json

The lines are those of ``prepare.py``; each is converted by `answering.conversion`, as the engine's
process does it, in one thread. Both ways take turns, and the figures are medians of the rounds:
milliseconds of processor time a line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from prepare import make_lines

from sglang.srt.blendserve.answering.conversion import RequestConversion
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.fetch_model.command import fetch
from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts
from sglang.srt.blendserve.requests.engine_settings import engine_settings


def main() -> int:
    """Measure and print; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=400, help="of a line, about")
    parser.add_argument("--shared", type=float, default=0.0, help="part of a line that all have")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model-path")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    model = args.model_path or str(fetch("smollm2"))
    prompts = EnginePrompts(engine_settings(model))
    vars(prompts.tokenizer).pop("encode", None)  # as an engine has it: nothing is put off
    lines = [
        BatchLine(line=number, **given) for number, given in enumerate(make_lines(args), start=1)
    ]
    conversion = prompts._conversion
    ids = [conversion.convert(line, "r").internal.input_ids for line in lines]
    known = [[np.asarray(one, dtype=np.int32)] for one in ids]
    seconds_a_line(conversion, lines[:50], known)  # makes what is made once
    plain_ms, known_ms = [], []
    for _ in range(args.rounds):
        plain_ms.append(1e3 * seconds_a_line(conversion, lines, [None] * len(lines)))
        known_ms.append(1e3 * seconds_a_line(conversion, lines, known))
    found = {
        "sglang": version("sglang"),
        "lines": len(lines),
        "tokens_a_line": round(statistics.mean(map(len, ids)), 1),
        "plain_cpu_ms": round(statistics.median(plain_ms), 3),
        "known_cpu_ms": round(statistics.median(known_ms), 3),
        "ratio": round(statistics.median(plain_ms) / statistics.median(known_ms), 2),
    }
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def seconds_a_line(conversion: RequestConversion, lines: list[BatchLine], prompts: Any) -> float:
    """Convert all lines; return processor time."""
    start = time.process_time()
    for line, known in zip(lines, prompts, strict=False):
        conversion.convert(line, "r", known)
    return (time.process_time() - start) / len(lines)


if __name__ == "__main__":
    raise SystemExit(main())
