"""Workloads written out by hand."""

from __future__ import annotations

import numpy as np

from sglang.srt.blendserve.simulator.workload import Workload, cap_for


def requests(
    lengths: list[tuple[int, int]], *, cap: int | None = None, seed: int = 0, name: str = "some"
) -> Workload:
    """A workload of (prompt, output) lengths in this order, without shared prefixes."""
    prompt, output = np.array(lengths, dtype=np.int64).T
    n = prompt.size
    return Workload(
        name=name,
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=np.full(n, cap or cap_for(int(output.max())), dtype=np.int64),
        prefix=np.full(n, -1, dtype=np.int64),
        prefix_tokens=np.zeros(n, dtype=np.int64),
        source=np.zeros(n, dtype=np.int64),
        sources=(name,),
        seed=seed,
    )
