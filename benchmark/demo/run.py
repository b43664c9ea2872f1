"""Answer the demo batch once per scheduling policy, one after the other, and compare.

The same model, batch, memory and machine for every policy; each run is a process of its own.
Answers, errors and summaries go to out/demo/. Flags that this command does not know go to
`sglang-blendserve run`, and so to SGLang.

    python benchmark/demo/run.py --policies fcfs lpm blendserve
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo_runs import (  # type: ignore[import-not-found]
    HERE,
    MAX_TOTAL_TOKENS,
    file,
    read_answers,
    run_command,
)

from sglang.srt.blendserve.fetch_model.models import model_path

BASELINE = "fcfs"

SHOWN = ("mmlu-astronomy-00", "gsm8k-00", "writing-00")
ROWS = (
    ("seconds", "{:.1f}"),
    ("tokens_per_second", "{:.1f}"),
    ("completed", "{}"),
    ("failed", "{}"),
    ("input_tokens", "{}"),
    ("cached_tokens", "{}"),
    ("output_tokens", "{}"),
    ("prefix_sharing", "{:.3f}"),
    ("prefix_sharing_optimum", "{:.3f}"),
    ("retractions", "{}"),
    ("planned_density", "{:.3f}"),
)

Summary = dict[str, Any]


def main() -> int:
    """Run and compare; returns 1 when a run fails."""
    args, flags = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    flags = ["--max-total-tokens", str(args.max_total_tokens), *flags]
    summaries: dict[str, Summary] = {}
    answers: dict[str, dict[str, str]] = {}
    for number, policy in enumerate(args.policies, 1):
        print(f"\n=== {number} of {len(args.policies)}: --policy {policy}", flush=True)
        started = time.monotonic()
        command = run_command(policy, args, flags)
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            print(f"{policy} ended with status {status}: {' '.join(command)}", file=sys.stderr)
            return 1
        print(f"{policy}: {time.monotonic() - started:.0f} s with the start of the engine")
        summaries[policy] = json.loads(file(args.out, policy, "summary.json").read_text())
        answers[policy] = read_answers(file(args.out, policy, "out.jsonl"))

    print_answers(answers[args.policies[-1]])
    print_table(summaries)
    print_comparison(summaries, answers)
    print(f"\nAnswers, errors and summaries are in {args.out}")
    return 0


def parse() -> tuple[argparse.Namespace, list[str]]:
    """This command's arguments, and the flags for SGLang."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", nargs="+", default=[BASELINE, "blendserve"], metavar="POLICY")
    parser.add_argument("-i", "--input", type=Path, default=HERE / "demo.jsonl")
    parser.add_argument("--model-path", type=Path, default=model_path("smollm2"))
    parser.add_argument("--max-total-tokens", type=int, default=MAX_TOTAL_TOKENS)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    return parser.parse_known_args()


def print_answers(answers: dict[str, str]) -> None:
    """Print one answer of each kind."""
    for custom_id in SHOWN:
        text = " ".join(answers.get(custom_id, "(no answer)").split())
        print(f"\n{custom_id}: {text[:300]}{' ...' if len(text) > 300 else ''}")


def print_table(summaries: dict[str, Summary]) -> None:
    """Print the summaries side by side."""
    print("\n" + " " * 24 + "".join(f"{policy:>14}" for policy in summaries))
    for key, form in ROWS:
        cells = (summary.get(key) for summary in summaries.values())
        print(f"{key:24}" + "".join(f"{'-' if c is None else form.format(c):>14}" for c in cells))


def print_comparison(summaries: dict[str, Summary], answers: dict[str, dict[str, str]]) -> None:
    """Print each policy's throughput over that of the first, and how many answers are equal."""
    first, *others = summaries
    for policy in others:
        ratio = summaries[policy]["tokens_per_second"] / summaries[first]["tokens_per_second"]
        same = sum(answers[policy].get(key) == text for key, text in answers[first].items())
        print(f"\n{policy} / {first}: {ratio:.3f} x the tokens per second", end="; ")
        print(f"{same} of {len(answers[first])} answers are the same to the letter")


if __name__ == "__main__":
    sys.exit(main())
