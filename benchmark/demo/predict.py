"""Predict real runs with the simulator, and compare with those that were measured.

    python benchmark/demo/predict.py --json benchmark/results/demo_predicted.json
    python benchmark/demo/predict.py -i in.jsonl --answers out.jsonl --kv-slots 12000 \\
        --measured report.json

SGLang's own scheduler over the simulated device (engine `sequential`), with the batch's real
prompts and the output lengths that its runs had, the KV cache and chunk of the real runs, and the
kernel times of a calibration of the machine they ran on. What is compared is speed over fcfs:
measured as the median of the rounds of `repeat.py` or of `benchmark/documents/run.py`, predicted
by one simulation, which has no spread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo_runs import HERE, MAX_TOTAL_TOKENS  # type: ignore[import-not-found]

RESULTS = HERE.parent / "results"
CHUNK = 2048
"""SGLang's chunk on a machine without a GPU, tokens."""
POLICIES = ("fcfs", "lpm", "dfs-weight", "random", "blendserve")
"""What is predicted, if it was measured."""


def main() -> int:
    """Simulate, compare, print; returns 1 if a simulation fails."""
    args = parse()
    measured = read_measured(args.measured)
    predicted: dict[str, dict[str, Any]] = {}
    results = simulate(args, "fixed", ",".join(name for name in POLICIES if name in measured))
    if results is None:
        return 1
    for result in results:
        predicted[result["policy"]] = result
    rows = compare(measured, predicted)
    print(f"{'':12}{'measured':>10}{'predicted':>11}{'apart':>8}{'sharing':>9}{'predicted':>11}")
    for name, row in rows.items():
        print(
            f"{name:12}{row['measured']:10.3f}{row['predicted']:11.3f}{row['apart']:+8.1%}"
            f"{row['sharing_measured']:9.3f}{row['sharing_predicted']:11.3f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def simulate(args: argparse.Namespace, pace: str, policies: str) -> list[dict[str, Any]] | None:
    """One call of `sglang-blendserve simulate`; its results, or None if it failed."""
    from sglang.srt.blendserve import cli
    from sglang.srt.blendserve.fetch_model.models import model_path

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        status = cli.main(
            ["simulate", "--batch", str(args.input), "--answers", str(args.answers),
             "--tokenizer", str(args.tokenizer or model_path("smollm2")),
             "--model", "SmolLM2-135M", "--device", "calibrated",
             "--calibration", str(args.calibration), "--engine", "sequential",
             "--kv-slots", str(args.kv_slots), "--chunks", str(CHUNK), "--separate-prefill",
             "--conservativeness", "1",  # as in the real runs
             "--pace", pace, "--pace-chunk", str(CHUNK), "--policies", policies,
             "--json", str(out)]
        )  # fmt: skip
        if status:
            return None
        results: list[dict[str, Any]] = json.loads(out.read_text())["results"]
        return results


def read_measured(path: Path) -> dict[str, Any]:
    """What each variant's rounds gave: ``speed_over_first``, ``prefix_sharing``, ``seconds``."""
    report = json.loads(path.read_text())
    if "report" in report:
        found: dict[str, Any] = report["report"]
        return found
    # Of benchmark/documents: by file order, then by peer.
    peers = report["questions"]
    return {
        name: {
            "speed_over_first": peer["over_fcfs"],
            "prefix_sharing": peer["sharing"],
            "seconds": peer["seconds"],
        }
        for name, peer in peers.items()
    }


def compare(
    measured: dict[str, Any], predicted: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Speeds over fcfs, by variant."""
    first = predicted["fcfs"]["tokens_per_second"]
    rows = {}
    for name, result in predicted.items():
        if name not in measured:
            continue
        real = measured[name]["speed_over_first"]["median"]
        told = result["tokens_per_second"] / first
        rows[name] = {
            "measured": real,
            "predicted": told,
            "apart": told / real - 1,
            "sharing_measured": measured[name]["prefix_sharing"]["median"],
            "sharing_predicted": result["prefix_sharing"],
            "seconds_measured": measured[name]["seconds"]["median"],
            "seconds_predicted": result["seconds"],
        }
    return rows


def parse() -> argparse.Namespace:
    """This command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measured", type=Path, default=RESULTS / "demo_cpu.json")
    parser.add_argument("--calibration", type=Path, default=RESULTS / "calibration_cpu.json")
    parser.add_argument(
        "--answers",
        type=Path,
        default=RESULTS / "demo_lengths.jsonl",
        help="output file of a run of the demo, of which the lengths are read",
    )
    parser.add_argument("-i", "--input", type=Path, default=HERE / "demo.jsonl")
    parser.add_argument("--kv-slots", type=int, default=MAX_TOTAL_TOKENS, help="tokens")
    parser.add_argument("--tokenizer", type=Path, help="model folder (default: SmolLM2's)")
    parser.add_argument("--json", type=Path, help="write the comparison here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
