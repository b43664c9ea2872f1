"""Step by step, how busy compute and memory are under two policies (the paper's figure 10).

    python benchmark/simulate/steps.py

Runs client-side depth-first order and blendserve on trace1 in the step model. Writes
``results/steps.json``: for each policy 400 spans of equal time with the share that compute and
memory were busy, prompt tokens and decodes of a step, and how full the KV cache was.
"""

from __future__ import annotations

import json

import numpy as np
from cells import RESULTS, rounded
from numpy.typing import NDArray
from studies import SWEEP

from sglang.srt.blendserve.simulator.fast import FastEngine
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.recipe import Recipe
from sglang.srt.blendserve.simulator.step_cost import StepTime, StepWork

WORKLOAD, REQUESTS = "trace1", SWEEP
RUNS = {"dfs": 2048, "blendserve": 0}
"""Policies, and the chunk of a peer, tokens."""
SPANS = 400
Floats = NDArray[np.float64]


def main() -> None:
    """Run both and write the file."""
    machine = Machine.build("Llama-3.1-8B", "A100-80G", "lanes", scale=8, rates="tables")
    run = FastRun(Recipe.parse(WORKLOAD).workload(REQUESTS, 0), machine)
    series = {}
    for policy, chunk in RUNS.items():
        steps: list[tuple[float, ...]] = []

        def note(
            _: FastEngine, work: StepWork, time: StepTime, to: list[tuple[float, ...]] = steps
        ) -> None:
            to.append((*time, work.prefill_tokens, work.decodes, work.kv_tokens))

        run.watch = note
        run.run(policy, chunks=(chunk,), conservativeness=(1.0,))
        series[policy] = {"chunk": chunk, **spans(np.array(steps), machine)}
    document = {"workload": WORKLOAD, "requests": REQUESTS, "spans": SPANS, "policies": series}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(document, indent=None, sort_keys=True)
    (RESULTS / "steps.json").write_text(text + "\n", encoding="utf-8")


def spans(steps: Floats, machine: Machine) -> dict[str, object]:
    """Means over `SPANS` spans of equal time of ``steps`` (n, 6): compute, memory and passed
    seconds, prompt tokens, decodes, KV tokens."""
    ends = np.append(0.0, np.cumsum(steps[:, 2]))
    edges = np.linspace(0.0, ends[-1], SPANS + 1)

    def mean(values: Floats) -> list[float]:
        """Mean over each span of values that hold per second of a step."""
        added = np.interp(edges, ends, np.append(0.0, np.cumsum(values * steps[:, 2])))
        return [float(f"{value:.3g}") for value in np.diff(added) / np.diff(edges)]

    return {
        "seconds": rounded(machine.real_seconds(float(ends[-1]))),
        "compute_busy": mean(steps[:, 0] / steps[:, 2]),
        "memory_busy": mean(steps[:, 1] / steps[:, 2]),
        "prefill_tokens": mean(steps[:, 3]),
        "decodes": mean(steps[:, 4]),
        "kv_full": mean(steps[:, 5] / machine.kv_slots),
    }


if __name__ == "__main__":
    main()
