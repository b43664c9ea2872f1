"""How much a wrong belief about the device costs the policy.

    python benchmark/simulate/beliefs.py --json benchmark/results/beliefs.json

The simulated device stays as it is. What the policy believes of it is wrong: compute or memory
traffic takes twice or half as long, for the plan and all that the pace adds up; or steps take what
they take on another device. Simulated, on the measured kernel times of an A100.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.kinds import make_workload
from sglang.srt.blendserve.simulator.machine import Machine

MODEL, DEVICE, OTHER = "Llama-3.1-8B", "A100-80G", "H100"
WORKLOADS = ("azure_code", "azure_conv", "burstgpt", "sharegpt", "documents")
ENGINES = ("sequential", "lanes")
RATES = {"compute x 2": (2, 1), "compute / 2": (0.5, 1), "memory x 2": (1, 2), "both x 2": (2, 2)}
STEPS = f"steps of {OTHER}"


def main() -> None:
    """Run all, print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    found = {}
    for workload in WORKLOADS:
        requests = make_workload(workload, args.requests, args.seed)
        for engine in ENGINES:
            machine = Machine.build(MODEL, DEVICE, engine, scale=8, rates="tables")
            other = Machine.build(MODEL, OTHER, engine, scale=8, rates="tables")
            run = FastRun(requests, machine)
            right = run.run("blendserve").tokens_per_second
            rates = {}
            for name, factors in RATES.items():
                run.machine = replace(machine, cost=machine.cost.at_rates(*factors))
                rates[name] = run.run("blendserve").tokens_per_second / right
            run.machine = replace(machine, belief=other.steps)
            rates[STEPS] = run.run("blendserve").tokens_per_second / right
            found[f"{workload}, {engine}"] = {name: round(one, 4) for name, one in rates.items()}
            shown = "  ".join(f"{name}: {one:.3f}" for name, one in rates.items())
            print(f"{workload:12}{engine:12}{shown}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
