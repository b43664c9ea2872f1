"""What the step model shows the policy: the state that SGLang's scheduler would."""

from __future__ import annotations

import pytest

from sglang.srt.blendserve.policy.select import StepPolicy
from sglang.srt.blendserve.policy.state import EngineState, Selection
from sglang.srt.blendserve.simulator.fast import FastEngine
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.step_cost import StepTime, StepWork
from sglang.srt.blendserve.simulator.workload import Workload


def test_tokens_and_slots_are_those_of_the_runtime(
    mixed: Workload, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KV tokens are those that the step's decodes read, their own included; a prompt holds slots
    for what is computed of it."""
    states: list[EngineState] = []
    select = StepPolicy.select

    def noting(policy: StepPolicy, state: EngineState) -> Selection:
        states.append(state)
        return select(policy, state)

    monkeypatch.setattr(StepPolicy, "select", noting)
    chunks, used_before = 0, 0

    def check(engine: FastEngine, work: StepWork, time: StepTime) -> None:
        nonlocal chunks, used_before
        state = states[-1]
        chunks += state.chunk is not None
        assert state.used_slots + state.chunk_tokens == used_before
        if work.decodes == state.running:  # none was retracted since
            assert state.kv_tokens == work.kv_tokens
        used_before = engine.cache.used

    FastRun(mixed, machine, watch=check).run("blendserve")
    assert chunks > 20
