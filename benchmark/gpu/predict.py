"""What the step model predicts for the workloads of `bench.py`, to set beside what was measured.

    python benchmark/gpu/predict.py --out OUT [--traces trace1,trace2]

Reads the constants of OUT/calibrate.json if it is there, else a guess with an interference of 1.15
while both resources are busy.
Engine ``sequential`` stands for stock SGLang, ``overlap`` for two lanes. Writes OUT/predicted.json,
and prints the ratio of each pair of measured medians in OUT/summary.json beside the predicted one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from loads import GUESS, Load, Scale

from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.machine import Machine

STANDS_FOR = {
    "dfs": ("sequential", "dfs"),
    "fcfs": ("sequential", "fcfs"),
    "blend-mixed": ("sequential", "blendserve"),
    "blend-chunks": ("overlap", "blendserve"),
}
"""Variants of the benchmark and the engine and policy of the step model that stand for them."""

CHUNKS = (2048, 8192)


def predict(load: Load, calibration: Calibration) -> dict[str, dict[str, float]]:
    """Seconds and tokens per second of each variant."""
    found = {}
    for name, (engine, policy) in STANDS_FOR.items():
        machine = Machine.build(
            load.scale.model,
            load.scale.device,
            engine,
            calibration=calibration,
            kv_slots=load.scale.kv_slots,
        )
        result = FastRun(load.workload, machine).run(policy, chunks=CHUNKS)
        found[name] = {
            "seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
            "share_of_optimum": result.share_of_optimum,
        }
    return found


def beside(predicted: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    """Lines that set predicted ratios against ``dfs`` beside the measured ones."""
    lines = []
    for row in summary.get("rows", ()):
        of_trace = predicted.get(row["trace"], {})
        if row["variant"] not in of_trace or row["against_dfs"] is None:
            continue
        name = row["variant"]
        ratio = of_trace[name]["tokens_per_second"] / of_trace["dfs"]["tokens_per_second"]
        apart = abs(ratio / row["against_dfs"] - 1)
        lines.append(
            f"{row['trace']} {name} against dfs: predicted {ratio:.3f}, "
            f"measured {row['against_dfs']:.3f}, {apart:.1%} apart"
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--traces", default="trace1,trace2")
    parser.add_argument("--scale", type=float, default=16.0)
    parser.add_argument("--waves", type=float, default=1.5)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    measured = args.out / "calibrate.json"
    calibration = (
        Calibration.load(measured)
        if measured.exists()
        else replace(GUESS, interference=1.15, interference_scope="overlap")
    )
    scale = Scale.of("Llama-3.1-8B", "H200", args.scale)
    predicted: dict[str, Any] = {"calibration": calibration.as_dict()}
    for trace in args.traces.split(","):
        load = Load.draw(trace, scale, args.waves, 0)
        predicted[trace] = predict(load, calibration)
        for name, row in predicted[trace].items():
            print(
                f"{trace} {name}: {row['seconds']:.1f} s, {row['tokens_per_second']:.0f} tokens/s, "
                f"{row['share_of_optimum']:.3f} of the optimum"
            )
    (args.out / "predicted.json").write_text(json.dumps(predicted, indent=1))
    summary = args.out / "summary.json"
    if summary.exists():
        print("\n".join(beside(predicted, json.loads(summary.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
