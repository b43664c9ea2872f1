"""What the step model predicts for the workloads of `bench.py`, to set beside what was measured.

    python benchmark/gpu/predict.py --out OUT [--call a] [--device H100] [--rates tables]

Two models. ``tables``, the default: SGLang's own kernel times on this card, and the published cost
of two lanes (the simulator's engines ``sequential`` and ``lanes``). ``peaks``: the data sheet and
the constants of OUT/calibrate.json, or a guess with an interference of 1.15 while both resources
are busy (engines ``sequential`` and ``overlap``). Stock is at the better of two chunk sizes and of
conservativeness 1 and 0.1. Writes OUT/predicted.json, and prints the ratio of each pair of measured
medians in OUT/summary.json beside the predicted one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from calls import CALLS, spec_of
from loads import GUESS, Load, Scale

from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.machine import Machine

STANDS_FOR = {
    "dfs": (False, "dfs"),
    "fcfs": (False, "fcfs"),
    "blend-mixed": (False, "blendserve"),
    "blend-chunks": (True, "blendserve"),
}
"""Variants of the benchmark -> whether they have two lanes, and their policy in the step model."""

TWO_LANES = {"tables": "lanes", "peaks": "overlap"}
"""The simulator's engine with two lanes."""

CHUNKS = (2048, 8192)


def predict(load: Load, calibration: Calibration | None) -> dict[str, dict[str, float]]:
    """Seconds and tokens per second of each variant; ``calibration``: None for the tables."""
    found = {}
    rates = "peaks" if calibration is not None else "tables"
    for name, (two_lanes, policy) in STANDS_FOR.items():
        machine = Machine.build(
            load.scale.model,
            load.scale.device,
            TWO_LANES[rates] if two_lanes else "sequential",
            calibration=calibration,
            kv_slots=load.scale.kv_slots,
            rates=rates,
        )
        result = FastRun(load.workload, machine).run(policy, chunks=CHUNKS)
        found[name] = {
            "seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
            "share_of_optimum": result.share_of_optimum,
        }
    return found


def card_of(out: Path) -> str:
    """The card that the results in a folder are of; an H200 where there are none."""
    facts = out / "facts.json"
    return spec_of(facts.read_text() if facts.exists() else "")


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
    parser.add_argument("--call", choices=CALLS, help="model, traces, scale and waves of a call")
    parser.add_argument("--traces", default="trace1,trace2")
    parser.add_argument("--scale", type=float, default=16.0)
    parser.add_argument("--waves", type=float, default=1.5)
    parser.add_argument("--model", default="Llama-3.1-8B")
    parser.add_argument(
        "--device",
        choices=("H100", "H200"),
        help="default: the card of OUT/facts.json, else an H200",
    )
    parser.add_argument("--rates", choices=TWO_LANES, default="tables")
    known, _ = parser.parse_known_args(argv)
    if known.call is not None:
        names = ("traces", "scale", "waves", "model")
        of_call = {"traces": "trace1"} | CALLS[known.call]
        parser.set_defaults(**{name: of_call[name] for name in names})
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    args.device = args.device or card_of(args.out)
    measured = args.out / "calibrate.json"
    calibration = None
    if args.rates == "tables":
        try:
            Machine.build(args.model, args.device, "lanes", rates="tables")
        except ValueError as error:
            print(f"predict: {error}. So by the data sheet:", file=sys.stderr)
            args.rates = "peaks"
    if args.rates == "tables" and measured.exists():
        print(f"predict: {measured} is not used; give --rates peaks for that.", file=sys.stderr)
    if args.rates == "peaks":
        calibration = (
            Calibration.load(measured)
            if measured.exists()
            else replace(GUESS, interference=1.15, interference_scope="overlap")
        )
    scale = Scale.of(args.model, args.device, args.scale)
    predicted: dict[str, Any] = {
        "device": args.device,
        "rates": args.rates,
        "calibration": calibration.as_dict() if calibration is not None else None,
        "scale": asdict(scale),
        "waves": args.waves,
    }
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
