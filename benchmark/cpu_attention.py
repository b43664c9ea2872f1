"""Attention of one layer by the compiled kernels and by plain torch, side by side in one run.

    python benchmark/cpu_attention.py --json out.json

Shapes of SmolLM2-135M (9 heads, 3 KV heads of 64), one thread; milliseconds are medians of rounds
in which the two take turns. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

HEADS, KV_HEADS, SIZE = 9, 3, 64
CASES = {
    "prefill 1024": (1024, 0, 1),
    "4 x 128 behind 512": (128, 512, 4),
    "decode 48": (1, 512, 48),
}
"""New tokens, cached tokens and sequences."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from sgl_kernel.attention import paged_attention, paged_attention_torch

    from sgl_kernel import native

    torch.set_num_threads(1)
    extension, reason = native.load()
    if extension is None:
        raise SystemExit(f"there is nothing to compare: {reason}")
    features = json.loads(Path(native.__file__).with_name("native_isa.json").read_text())
    found: dict[str, Any] = {"built_for": features}
    for name, case in CASES.items():
        for dtype in (torch.float32, torch.bfloat16):
            arguments, work = make(torch, dtype, *case)
            times: dict[str, list[float]] = {"compiled": [], "torch": []}
            for _ in range(args.rounds + 1):
                for way, attend in (
                    ("compiled", paged_attention),
                    ("torch", paged_attention_torch),
                ):
                    began = time.perf_counter()
                    attend(*arguments)
                    times[way].append(time.perf_counter() - began)
            medians = {way: 1e3 * statistics.median(one[1:]) for way, one in times.items()}
            row = {**medians, "gflops": work / medians["compiled"] / 1e6}
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = row
            print(f"{name:20} {dtype}: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def make(torch: Any, dtype: Any, new: int, cached: int, sequences: int) -> tuple[Any, float]:
    """Return what the kernels are called with, and the floating-point operations of it."""
    slots, length = (new + cached) * sequences, new + cached
    draw = torch.Generator().manual_seed(0)
    keys, values = (
        torch.randn(slots + 1, KV_HEADS, SIZE, generator=draw).to(dtype) for _ in range(2)
    )
    queries = torch.randn(new * sequences, HEADS, SIZE, generator=draw).to(dtype)
    table = torch.arange(slots, dtype=torch.int32).view(sequences, -1)
    lengths = [torch.full((sequences,), count, dtype=torch.int64) for count in (length, new)]
    arguments = (queries, keys, values, table, torch.arange(sequences), *lengths, SIZE**-0.5)
    return arguments, 4.0 * HEADS * SIZE * sequences * new * (cached + new / 2)


if __name__ == "__main__":
    main()
