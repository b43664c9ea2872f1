"""The device keeps output lengths to itself; runs repeat bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from sglang.srt.blendserve.simulator.fast import FastEngine, StepTime, StepWork
from sglang.srt.blendserve.simulator.fast_run import POLICIES, FastRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.workload import Workload


class Admissions:
    """What each step started, up to the first step in which a request ended."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, ...]] = []
        self._over = False

    def note(self, engine: FastEngine, work: StepWork, _: StepTime) -> None:
        if not self._over:
            inside = (*sorted(engine.running), *engine.starting)
            self.steps.append((work.prefill_tokens, *inside))
        self._over = self._over or engine.left < engine.size


def admissions(workload: Workload, machine: Machine, policy: str, monkeypatch) -> list:  # type: ignore[no-untyped-def]
    seen = Admissions()
    run = FastEngine.run
    monkeypatch.setattr(FastEngine, "run", lambda self, p, **_: run(self, p, on_step=seen.note))
    FastRun(workload, machine).run(policy, chunks=(512,))
    monkeypatch.setattr(FastEngine, "run", run)
    return seen.steps[:-1]  # the last one is the step in which the first request ended


def identical(lengths: np.ndarray) -> Workload:
    n = lengths.size
    return Workload(
        name="same",
        prompt_tokens=np.full(n, 12),
        output_tokens=lengths,
        max_tokens=np.full(n, 2048),
        prefix=np.zeros(n, dtype=np.int64),
        prefix_tokens=np.full(n, 11),
        source=np.zeros(n, dtype=np.int64),
        sources=("same",),
        seed=1,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_permuted_lengths_change_nothing_before_the_first_end(
    policy: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, 1000, 80)
    one = admissions(identical(lengths), machine, policy, monkeypatch)
    other = admissions(identical(rng.permutation(lengths)), machine, policy, monkeypatch)
    both = min(len(one), len(other))
    assert both > 10
    assert one[:both] == other[:both]


@pytest.mark.parametrize("policy", ["dfs", "lpt-ewma", "blendserve", "paper"])
def test_the_same_run_gives_the_same_numbers(
    policy: str, mixed: Workload, machine: Machine
) -> None:
    results = [FastRun(mixed, machine).run(policy, chunks=(256,)) for _ in range(2)]
    for result in results:
        result.scheduler_seconds = 0.0
    assert results[0] == results[1]


@pytest.mark.parametrize("engine", ["overlap", "sequential"])
def test_every_policy_answers_everything(engine: str, mixed: Workload) -> None:
    machine = Machine.build("Llama-3.1-8B", "A100-80G", engine, kv_slots=3000)
    run = FastRun(mixed, machine)
    for policy in POLICIES:
        result = run.run(policy, chunks=(256, 1024))
        assert 0 < result.share_of_optimum <= 1, policy
        assert result.prefix_sharing <= result.prefix_sharing_optimum + 0.02, policy
