"""Answer the demo batch several times under each policy, in turns, and report medians and spread.

    python benchmark/demo/repeat.py --rounds 5 --json benchmark/results/demo_cpu.json

Each round runs every policy once, in another order each time, so that a change of the machine's
load meets all of them; ratios are taken within a round. A variant is a policy with flags of its
own, `name=policy,flag,value,...`: `fixed=blendserve,--blendserve-pace,fixed`. `vllm=vllm` is vLLM
with the same KV cache, as a server that OpenAI's client sends all lines at once (half of the demo's
are plain completions, which `vllm run-batch` refuses); benchmark/documents/vllm_env.sh makes its
environment. Rounds that are done are kept in the JSON file after each run; Ctrl-C loses only the
run it meets. Flags that this command does not know go to `sglang-blendserve run`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
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

sys.path.insert(0, str(HERE.parent / "documents"))

import vllm_batch
import vllm_server

VARIANTS = ["fcfs=fcfs", "lpm=lpm", "dfs-weight=dfs-weight", "random=random",
            "blendserve=blendserve"]  # fmt: skip
KEPT = ("seconds", "tokens_per_second", "completed", "failed", "cached_tokens", "output_tokens",
        "prefix_sharing", "prefix_sharing_optimum", "retractions")  # fmt: skip

VLLM = "vllm"
MODEL = "SmolLM2-135M-Instruct"
"""The model's name in the batch."""

Run = dict[str, Any]


def main() -> int:
    """Run all rounds; returns 1 when a run fails."""
    args, flags = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    flags = ["--max-total-tokens", str(args.max_total_tokens), *flags]
    variants = [text for text in args.variants if available(text, args.vllm)]
    runs: list[Run] = []
    for round_ in range(args.rounds):
        turn = round_ % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            name, _, call = variant.partition("=")
            policy, *own = call.split(",")
            load = os.getloadavg()[0]
            began = time.monotonic()
            try:
                answer = run_vllm if policy == VLLM else run_policy
                figures = answer(name, policy, own, args, flags)
            except RuntimeError as error:
                print(f"{error}\n{name} failed", file=sys.stderr)
                return 1
            run = {"round": round_, "variant": name, "load_before": round(load, 2)} | figures
            runs.append(run)
            print(
                f"round {round_ + 1} of {args.rounds}: {name:12} {run['seconds']:7.1f} s, sharing "
                f"{run['prefix_sharing']:.3f} ({time.monotonic() - began:.0f} s in all)",
                flush=True,
            )
            if args.json:
                write(args.json, args, flags, runs)
    print(json.dumps(report(runs), indent=1))
    return 0


def available(variant: str, vllm: Path) -> bool:
    """Whether the variant can be run; says in one line why not."""
    if variant.partition("=")[2].split(",")[0] != VLLM:
        return True
    lacking = vllm_batch.missing(vllm)
    if lacking:
        print(f"{lacking}; going on without it", file=sys.stderr)
    return not lacking


def run_policy(
    name: str, policy: str, own: list[str], args: argparse.Namespace, flags: list[str]
) -> Run:
    """Figures and answers of one run of `sglang-blendserve run`; RuntimeError if it fails."""
    command = run_command(policy, args, [*flags, *own])
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{done.stderr[-3000:]}\nended with status {done.returncode}")
    summary = json.loads(file(args.out, policy, "summary.json").read_text())
    answers = read_answers(file(args.out, policy, "out.jsonl"))
    return {key: summary[key] for key in KEPT} | {"answers": answers}


def run_vllm(
    name: str, policy: str, own: list[str], args: argparse.Namespace, flags: list[str]
) -> Run:
    """Figures and answers of one run of vLLM's server; RuntimeError if it does not come up."""
    port = free_port()
    command = vllm_server.serve_command(
        args.vllm, args.model_path, [MODEL], args.max_total_tokens, port,
        own or vllm_batch.best_flags(),
    )  # fmt: skip
    done = vllm_server.run(command, port, args.input, file(args.out, name, "log"))
    usage, seconds = done.usage, done.times.seconds
    return {
        "seconds": seconds,
        "tokens_per_second": (usage.input_tokens + usage.output_tokens) / seconds,
        "completed": usage.completed,
        "failed": usage.failed,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "prefix_sharing": usage.cached_tokens / max(1, usage.input_tokens),
        "answers": done.texts,
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def report(runs: list[Run]) -> dict[str, Any]:
    """Medians and spread of each variant, and of its ratio to the first one round by round."""
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run["variant"], []).append(run)
    first = {run["round"]: run for run in next(iter(by_variant.values()))}
    result = {}
    for name, mine in by_variant.items():
        pairs = [(run, first[run["round"]]) for run in mine if run["round"] in first]
        result[name] = {
            "runs": len(mine),
            "seconds": spread([run["seconds"] for run in mine]),
            "tokens_per_second": spread([run["tokens_per_second"] for run in mine]),
            "prefix_sharing": spread([run["prefix_sharing"] for run in mine]),
            "retractions": spread([run["retractions"] for run in mine if "retractions" in run]),
            "speed_over_first": spread(
                [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
            ),
            "answers_as_first": spread(
                [sum(a["answers"].get(k) == v for k, v in b["answers"].items()) for a, b in pairs]
            ),
        }
    return result


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most; empty for no values."""
    if not values:
        return {}
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def write(target: Path, args: argparse.Namespace, flags: list[str], runs: list[Run]) -> None:
    """Write what is done so far; the answers themselves stay out."""
    kept = [{key: value for key, value in run.items() if key != "answers"} for run in runs]
    text = json.dumps({"variants": args.variants, "flags": flags, "report": report(runs),
                       "runs": kept}, indent=1)  # fmt: skip
    target.write_text(text + "\n")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """This command's arguments, and the flags for SGLang."""
    from sglang.srt.blendserve.fetch_model.models import model_path

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="NAME=POLICY[,FLAG..]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-i", "--input", type=Path, default=HERE / "demo.jsonl")
    parser.add_argument("--model-path", type=Path, default=model_path("smollm2"))
    parser.add_argument("--max-total-tokens", type=int, default=MAX_TOTAL_TOKENS)
    parser.add_argument("--vllm", type=Path, default=HERE.parents[1] / ".venv-vllm",
                        metavar="ENVIRONMENT")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out/demo-repeat"))
    parser.add_argument("--json", type=Path, help="keep the results here")
    return parser.parse_known_args()


if __name__ == "__main__":
    sys.exit(main())
