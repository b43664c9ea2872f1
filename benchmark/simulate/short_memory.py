"""Retractions and steps where the KV cache is short and no output length is told.

    python benchmark/simulate/short_memory.py

On the fast step model, Llama-3.1-8B on an A100: each workload under stock SGLang (``fcfs``, chunks
of 512) and under ``blendserve``. Prints the table of docs/scheduling.md; takes about a minute.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.workload import Workload

Ints = NDArray[np.int64]


def workload(name: str, prompt: int, output: Ints, cap: int) -> Workload:
    """Requests of equally long prompts that share nothing."""
    n = output.size
    return Workload(
        name=name,
        prompt_tokens=np.full(n, prompt),
        output_tokens=output,
        max_tokens=np.full(n, cap),
        prefix=np.full(n, -1),
        prefix_tokens=np.zeros(n, dtype=np.int64),
        source=np.zeros(n, dtype=np.int64),
        sources=(name,),
        seed=0,
    )


def cases() -> list[tuple[Workload, int]]:
    """Workloads and the KV slots they run in."""

    def rng(seed: int = 0) -> np.random.Generator:
        return np.random.default_rng(seed)

    even = rng().integers(256, 513, 1500)
    three = rng(200).choice([20, 120, 180], 200)
    normal = np.exp(rng().normal(np.log(400), 1, 600)).astype(np.int64).clip(1, 4096)
    two = rng().choice([30, 480], 1000)
    return [
        (workload("1,500 requests of 256 to 512 tokens, cap 512", 20, even, 512), 40_000),
        (workload("400 of the same", 20, even[:400], 512), 6_000),
        (workload("200 of 20, 120 or 180, cap 200", 6, three, 200), 1_500),
        (workload("600 log-normal, median 400, cap 4,096", 20, normal, 4096), 20_000),
        (workload("1,000 of 30 or 480, cap 512", 20, two, 512), 6_000),
    ]


def main() -> None:
    """Run all cases."""
    print("| workload, KV slots | stock SGLang (`fcfs`) | blendserve |")
    print("| --- | ---: | ---: |")
    for requests, slots in cases():
        machine = Machine.build("Llama-3.1-8B", "A100-80G", "overlap", kv_slots=slots)
        run = FastRun(requests, machine)
        found = [run.run("fcfs", chunks=(512,), conservativeness=(1.0,)), run.run("blendserve")]
        cells = [f"{r.retractions} ({r.steps:,} steps, {r.seconds:.1f} s)" for r in found]
        print(f"| {requests.name}; {slots:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
