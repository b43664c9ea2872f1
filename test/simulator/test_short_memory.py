"""KV caches that stock SGLang's admission overfills: retractions, counted."""

from __future__ import annotations

import numpy as np
import pytest
from small_workloads import requests

from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.full_run import FullRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.workload import Workload


def overfull(count: int) -> Workload:
    """Requests of 256 to 512 output tokens, of which a policy sees the cap of 512 alone."""
    lengths = np.random.default_rng(0).integers(256, 513, count)
    return requests([(20, int(length)) for length in lengths], cap=512)


def test_we_retract_far_less_often_than_stock() -> None:
    machine = Machine.build("Llama-3.1-8B", "A100-80G", "overlap", kv_slots=40_000)
    run = FastRun(overfull(1500), machine)
    stock = run.run("fcfs", chunks=(512,), conservativeness=(1.0,))
    ours = run.run("blendserve")
    assert stock.retractions >= 150
    assert ours.retractions <= stock.retractions / 5
    assert ours.steps < stock.steps  # not by leaving the memory empty


@pytest.mark.engine
def test_the_same_in_sglang_s_own_scheduler() -> None:
    machine = Machine.build("Llama-3.1-8B", "A100-80G", "overlap", kv_slots=40_000)
    ended: list[int] = []
    run = FullRun(overfull(1500), machine, "Llama-3.1-8B", DeviceSpec.named("A100-80G"))
    stock = run.run("fcfs", chunks=(512,), conservativeness=(1.0,))
    ours = run.run("blendserve", progress=ended.append)
    assert sum(ended) == 1500
    assert stock.retractions >= 100
    assert ours.retractions <= stock.retractions / 5


def test_a_small_cache_is_kept_full_and_not_flooded() -> None:
    """Lengths of three kinds that nothing tells apart. Some requests are computed again, and the
    run is shorter for it: at 1,757 steps every request had to fit to its end."""
    machine = Machine.build("Llama-3.1-8B", "A100-80G", "overlap", kv_slots=1500)
    lengths = np.random.default_rng(200).choice([20, 120, 180], 200)
    run = FastRun(requests([(6, int(length)) for length in lengths], cap=200), machine)
    stock = run.run("fcfs", chunks=(512,), conservativeness=(1.0,))
    ours = run.run("blendserve")
    assert ours.steps < 0.7 * stock.steps
    assert ours.retractions < 2.5 * 200
