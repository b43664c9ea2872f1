"""Division, work and trace of the two lanes, without lanes.

pytest test/gpu/test_division.py
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pools import COST

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.runtime.overlap.division import Division
from sglang.srt.blendserve.runtime.overlap.lane_trace import LaneRow, LaneTrace
from sglang.srt.blendserve.runtime.overlap.lanes import Lanes
from sglang.srt.blendserve.runtime.overlap.turns import Turns
from sglang.srt.blendserve.runtime.overlap.work import (
    LaunchedBatch,
    Load,
    decode_load,
    may_run_ahead,
    prefill_load,
)

COUNTS = ((128, 0), (32, 96), (64, 64), (96, 32), (0, 128))
STEP = Load(tokens=100, kv_tokens=400_000, compute=0.002, memory=0.015)
REST = RemainingWork(0.0, 0.0)


def division(fixed: bool | None = False) -> Division:
    nothing: Any = None
    return Division(Lanes(nothing, nothing, COUNTS, first=1, choices=3), Turns(fixed))


def launched(group: int, load: Load = STEP, **given: Any) -> LaunchedBatch:
    batch: Any = SimpleNamespace(reqs=[None] * 7)
    return LaunchedBatch(batch, load, group, beside=True, launched=1.0, **given)


def test_it_chooses_among_the_divisions_only() -> None:
    for prefill in (0.0, 0.01, 10.0):
        chosen = division()
        group = chosen.choose(REST, STEP, Load(2048, 0, prefill, 0.0), COST)
        assert group == chosen.group
        assert 1 <= group <= 3


def test_what_ran_on_the_whole_device_teaches_nothing_of_a_division() -> None:
    learning = division()
    before = learning.state()
    for group in (0, 4):
        learning.decoded(launched(group, seconds=0.5))
        learning.prefilled(launched(group, seconds=0.5))
    learning.prefilled(launched(2, seconds=0.5, one_group=False))
    assert learning.state() == before


@pytest.mark.parametrize(("interference", "in_turns"), [(1.0, False), (1.3, True), (3.0, True)])
def test_lanes_that_cost_each_other_too_much_run_in_turns(
    interference: float, in_turns: bool
) -> None:
    """On a device where each lane alone does what the cost model says."""
    learning, taken = division(None), []
    beside = Load(2048, 0, 0.02, 0.0)
    for _ in range(300):
        group = learning.choose(REST, STEP, beside, COST)
        taken.append(learning.turns.taken)
        if taken[-1]:
            learning.decoded_alone(launched(4, seconds=STEP.compute + STEP.memory))
            learning.prefilled(launched(0, beside, seconds=beside.compute))
            continue
        prefill, decode = COUNTS[group]
        slow = interference * (STEP.compute + STEP.memory) / min(1.0, decode / 64)
        learning.decoded(launched(group, seconds=slow))
        fast = interference * beside.compute * 128 / prefill
        learning.prefilled(launched(group, beside, seconds=fast))
    assert taken[-1] is in_turns
    assert taken[-50:] == [in_turns] * 50  # it has come to rest
    state = learning.state()
    assert state["in_turns"] is in_turns
    assert state["turn_changes"] <= 3


def test_turns_are_left_when_they_are_slower_than_thought() -> None:
    """A lane alone may be slower than the cost model says; that shows when it has been tried."""
    turns = Turns()
    assert not turns.decide(10.0, 4.0, 4.0, measured=False)
    assert turns.decide(10.0, 4.0, 4.0, measured=True)
    for _ in range(3):
        assert turns.decide(10.0, 4.0, 4.0, measured=True)
        turns.observe_prefill(1.0, 2.0)
        turns.observe_decode(1.0, 2.0)
    assert turns.seconds(4.0, 4.0) == pytest.approx(16)
    assert not turns.decide(10.0, 4.0, 4.0, measured=True)
    assert turns.changes == 2


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_choice_stays(fixed: bool) -> None:
    turns = Turns(fixed)
    for at_once in (0.1, 100.0):
        assert turns.decide(at_once, 1.0, 1.0, measured=True) is fixed
    assert turns.changes == 0


def test_a_division_learns_the_speed_of_both_lanes() -> None:
    learning = division()
    learning.decoded(launched(2, seconds=0.034))
    learning.prefilled(launched(2, Load(2048, 0, 0.03, 0.0), seconds=0.06))
    state = learning.state()
    assert state["decode_speeds"][1] == pytest.approx(0.5)
    assert state["prefill_speeds"][1] == pytest.approx(0.5)
    assert state["divisions"] == [list(sms) for sms in COUNTS]


def test_the_work_of_a_batch_is_the_cost_models() -> None:
    decode: Any = SimpleNamespace(reqs=[None] * 3, seq_lens_cpu=np.array([10, 20, 30]))
    load = decode_load(decode, COST)
    assert (load.tokens, load.kv_tokens) == (3, 60)
    assert load.memory == pytest.approx(float(COST.kv_read_seconds(60) + COST.weights_seconds(3)))
    prefill: Any = SimpleNamespace(extend_lens=[100, 50], prefix_lens=[0, 200])
    load = prefill_load(prefill, COST)
    assert (load.tokens, load.kv_tokens, load.memory) == (150, 0, 0.0)
    each = COST.prefill_seconds(np.array([100.0, 50.0]), np.array([0.0, 200.0]))
    assert load.compute == pytest.approx(float(each.sum()))


@pytest.mark.parametrize(
    "needed", [None, "has_grammar", "return_logprob", "return_hidden_states", "penalties", "empty"]
)
def test_a_step_that_needs_the_last_ones_tokens_waits_for_them(needed: str | None) -> None:
    batch: Any = SimpleNamespace(
        is_empty=lambda: needed == "empty",
        has_grammar=needed == "has_grammar",
        return_logprob=needed == "return_logprob",
        return_hidden_states=needed == "return_hidden_states",
        sampling_info=SimpleNamespace(
            penalizer_orchestrator=SimpleNamespace(is_required=needed == "penalties")
        ),
    )
    assert may_run_ahead(batch) == (needed is None)


def test_a_row_of_the_lane_trace() -> None:
    rows: list[LaneRow] = []
    file: Any = SimpleNamespace(add=rows.append, flush=rows.clear)
    scheduler: Any = SimpleNamespace(kv_cache=SimpleNamespace(obtainable=40), pool=[None] * 9)
    lanes: Any = SimpleNamespace(counts={2: (64, 44)})
    trace = LaneTrace(scheduler, lanes, file)
    before = trace.now()
    trace.add("decode", launched(2, seconds=0.5))
    (row,) = rows
    assert before <= row.ended_seconds <= trace.now()
    assert replace(row, ended_seconds=2.5) == LaneRow(
        lane="decode",
        launched_seconds=1.0,
        ended_seconds=2.5,
        device_seconds=0.5,
        prefill_sms=64,
        decode_sms=44,
        beside=1,
        requests=7,
        tokens=100,
        kv_tokens=400_000,
        compute_seconds=0.002,
        memory_seconds=0.015,
        free_slots=40,
        waiting=9,
    )
    trace.flush()
    assert not rows
    without = LaneTrace(scheduler, lanes, None)  # does nothing
    without.add("decode", launched(2, seconds=0.5))
    without.flush()
