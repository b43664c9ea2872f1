"""Rehearse the three calls of docs/gpu.md without a GPU: plans of times, and each with engines.

    python benchmark/gpu/rehearse.py --json benchmark/results/gpu_rehearsal.json

The plan is that of either card, in seconds, set-up apart. Then each call runs from its first stage
to its last on this machine's CPU, with a tiny model and workload and the two lanes emulated. That
tries the scripts, the engines' flags and the files they leave; not the kernels of a GPU, in whose
place torch's are checked, nor any time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import Bench, parse
from calls import CALLS

HERE = Path(__file__).resolve().parent
BUDGET = 1500
"""Seconds that a call may take on a CPU."""


def planned(call: str, spec: str, folder: Path) -> dict[str, Any]:
    """The plan of a call on a card: seconds of each stage and variant, in all, and its limit."""
    bench = Bench(parse(["--out", str(folder), "--call", call, "--spec", spec]))
    seconds = {name: round(expected) for name, expected in bench.expected().items()}
    whole = round(sum(seconds.values()) + bench.budget.reserve)
    return {"seconds": seconds, "in_all": whole, "limit": round(bench.budget.limit)}


def rehearsed(call: str, folder: Path) -> dict[str, Any]:
    """What came of a call on this machine's CPU."""
    arguments = ["--out", str(folder), "--call", call, "--device", "cpu", "--tiny"]
    arguments += ["--budget", str(BUDGET)]
    done = subprocess.run(
        [sys.executable, str(HERE / "bench.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not (folder / "summary.json").exists():
        raise SystemExit(f"call {call} ended without a summary:\n{done.stdout[-3000:]}")
    summary = json.loads((folder / "summary.json").read_text())
    runs = {
        path.stem.removeprefix("run-"): [
            {name: run[name] for name in ("cached_tokens", "wrong_lengths", "retractions")}
            for run in json.loads(path.read_text())["runs"]
        ]
        for path in sorted(folder.glob("run-*.json"))
        if not path.stem.endswith(".order")
    }
    return {
        "exit_status": done.returncode,
        "variants": runs,
        "left_out": summary["dropped"],
        "failed": summary["errors"],
        "files": sorted(p.name for p in folder.iterdir() if p.suffix in (".json", ".csv", ".png")),
    }


def main() -> None:
    """See the module's docstring."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, help="where to write the result")
    made.add_argument("--calls", default=",".join(CALLS), help="which (default: all)")
    args = made.parse_args()
    found: dict[str, Any] = {}
    for call in args.calls.split(","):
        with tempfile.TemporaryDirectory() as name:
            plans = {spec: planned(call, spec, Path(name) / spec) for spec in ("H100", "H200")}
            found[call] = {"plan": plans, "on_a_cpu": rehearsed(call, Path(name) / "cpu")}
        print(call, json.dumps(found[call]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    for call, one in found.items():
        came = one["on_a_cpu"]
        wrong = [run for runs in came["variants"].values() for run in runs if run["wrong_lengths"]]
        if came["exit_status"] or came["left_out"] or wrong:
            raise SystemExit(
                f"call {call}: status {came['exit_status']}, {came['left_out']} {wrong}"
            )


if __name__ == "__main__":
    main()
