"""Small workloads and machines for the simulator's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_workloads import requests

from sglang.srt.blendserve.simulator.length_traces import LengthTrace
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.workload import Workload, concatenated


@pytest.fixture
def machine() -> Machine:
    """Llama-3.1-8B on an A100 with a KV cache so small that a few requests fill it."""
    return Machine.build("Llama-3.1-8B", "A100-80G", "overlap", kv_slots=6000)


@pytest.fixture
def mixed() -> Workload:
    """400 short requests behind few shared prefixes and 30 with long outputs."""
    rng = np.random.default_rng(7)
    n = 400
    prefix = rng.integers(0, 5, n)
    short = Workload(
        name="short",
        prompt_tokens=np.full(n, 64) + rng.integers(20, 200, n),
        output_tokens=rng.integers(1, 20, n),
        max_tokens=np.full(n, 32),
        prefix=prefix,
        prefix_tokens=np.full(n, 64),
        source=np.zeros(n, dtype=np.int64),
        sources=("short",),
        seed=3,
    )
    long = requests(
        [(int(p), int(d)) for p, d in zip(rng.integers(5, 30, 30), rng.integers(50, 900, 30))],  # noqa: B905
        cap=1024,
        seed=3,
        name="long",
    )
    parts = [part.with_system_prompts(4) for part in (short, long)]
    return concatenated("mixed", parts, 3, shuffle=True)


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    """A trace file of BurstGPT's first rows."""
    source = LengthTrace.named("burstgpt")
    path = tmp_path / "lengths.csv"
    rows = zip(source.prompt_tokens[:200], source.output_tokens[:200], strict=True)
    path.write_text("input_tokens,output_tokens\n" + "".join(f"{p},{d}\n" for p, d in rows))
    return path
