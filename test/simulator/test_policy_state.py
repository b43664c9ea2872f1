"""What the step model shows the policy: the state that SGLang's scheduler would."""

from __future__ import annotations

import pytest

from sglang.srt.blendserve.policy.select import StepPolicy
from sglang.srt.blendserve.policy.state import EngineState, Selection
from sglang.srt.blendserve.simulator.fast import FastEngine
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions
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


@pytest.mark.parametrize("window", [0, 32])
def test_no_request_starts_before_it_has_come(
    window: int, mixed: Workload, machine: Machine
) -> None:
    known, seen = 0.1, 0
    started: set[int] = set()

    def check(engine: FastEngine, work: StepWork, time: StepTime) -> None:
        nonlocal seen
        started.update(engine.running, engine.starting)
        ended = engine.size - engine.left
        assert all(request <= known * engine.size + ended for request in started)
        seen += 1

    options = BlendOptions(window=window, known_ahead=known)
    FastRun(mixed, machine, options, watch=check).run("blendserve")
    assert seen
    assert len(started) > 0.9 * mixed.size  # some begin and end in one step
