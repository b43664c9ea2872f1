"""Work that is all compute: nothing to blend with, and nothing to lose by it.

Run: pytest test/simulator/test_compute_bound.py
"""

from __future__ import annotations

import pytest

from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.kinds import make_workload
from sglang.srt.blendserve.simulator.machine import Machine


@pytest.mark.parametrize(("engine", "least"), [("lanes", 0.98), ("sequential", 0.96)])
def test_agents_whose_prefixes_fit_the_cache(engine: str, least: float) -> None:
    """Long shared prompts and short answers: steps that wait for traffic to hide would be tiny."""
    machine = Machine.build("Qwen2.5-7B", "H200", engine, rates="tables", scale=8)
    run = FastRun(make_workload("agents", 2000, 0), machine)
    peer = run.run("fcfs", chunks=(2048,), conservativeness=(0.1,))
    ours = run.run("blendserve")
    assert ours.tokens_per_second > least * peer.tokens_per_second
    assert ours.prefix_sharing > 0.98 * peer.prefix_sharing
