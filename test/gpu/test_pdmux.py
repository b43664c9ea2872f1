"""Flags and set-up of the two lanes, without an engine.

pytest test/gpu/test_pdmux.py
"""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.compatibility import UnsupportedCombination
from sglang.srt.blendserve.runtime.overlap import lanes
from sglang.srt.blendserve.runtime.overlap.pdmux import flags, repair
from sglang.srt.blendserve.runtime.overlap.work import Load, work_left
from sglang.srt.blendserve.settings import Settings

NOT_GIVEN = SimpleNamespace(
    chunked_prefill_size=None,
    enable_mixed_chunk=False,
    pdmux_config_path=None,
    disaggregation_mode="null",
)
"""Fields of ``ServerArgs`` as they are where no flag is given."""

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("H200"))


def test_what_sglang_reads_and_does_not_have_is_set(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seams, "PDMUX_LACKS", ("gpu_id", "tp_size"))
    scheduler = SimpleNamespace(ps=SimpleNamespace(gpu_id=3, tp_size=2))
    with caplog.at_level(logging.WARNING):
        repair(scheduler)
    assert (scheduler.gpu_id, scheduler.tp_size) == (3, 2)
    assert "this is not stock SGLang" in caplog.text
    caplog.clear()
    repair(scheduler)
    assert not caplog.text


def test_the_repair_is_made_just_where_it_is_needed() -> None:
    """SGLang 0.5.17 reads attributes that its scheduler lacks; 0.5.23 does not."""
    from sglang.srt.multiplex.multiplexing_mixin import SchedulerMultiplexMixin

    source = inspect.getsource(SchedulerMultiplexMixin)
    read = [name for name in ("gpu_id", "tp_size") if f"self.{name}" in source]
    assert tuple(read) == seams.PDMUX_LACKS


@pytest.mark.parametrize(("split", "groups"), [("auto", 8), ("shared", 2), ("72", 3)])
def test_overlap_sets_what_sglang_asks_for(split: str, groups: int) -> None:
    assert flags(NOT_GIVEN, Settings(overlap="chunks", overlap_sm=split)) == {
        "enable_pdmux": True,
        "chunked_prefill_size": -1,
        "disable_overlap_schedule": True,
        "sm_group_num": groups,
    }
    made = lanes.make_lanes("cpu", 0, split)
    assert len(made.counts) == groups
    assert made.alone == groups - 1
    assert (np.diff(made.shares) > 0).all()


def test_without_overlap_nothing_is_set() -> None:
    given = SimpleNamespace(chunked_prefill_size=4096, enable_mixed_chunk=True)
    assert flags(given, Settings()) == {}


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"chunked_prefill_size": 2048}, "--blendserve-overlap-chunk"),
        ({"enable_mixed_chunk": True}, "share one forward"),
        ({"pdmux_config_path": "x.yaml"}, "--blendserve-overlap-sm"),
        ({"disaggregation_mode": "prefill"}, "different machines"),
    ],
)
def test_what_contradicts_it_is_refused_with_the_reason(given: dict[str, Any], flag: str) -> None:
    with pytest.raises(UnsupportedCombination, match=flag):
        flags(SimpleNamespace(**(vars(NOT_GIVEN) | given)), Settings(overlap="layers"))


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"overlap": "both"}, "overlap"),
        ({"overlap_chunk": 0}, "chunk"),
        ({"overlap_sm": "x"}, "sm"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=f"--blendserve-overlap.*{flag}|--blendserve-{flag}"):
        Settings(**values)


def test_a_division_the_device_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8 between 8 and 120"):
        lanes.make_lanes("cpu", 0, "50")


def test_emulated_work_is_done_when_launched_and_reported_later() -> None:
    lane = lanes.make_lanes("cpu", 0, "auto").prefill
    polls = set()
    for number in range(50):
        result, work = lane.launch(1, lambda number=number: number)
        assert result == number
        polls.add(next(count for count in range(10) if work.done()))
    assert len(polls) > 1


STEP = Load(tokens=100, kv_tokens=400_000, compute=0.002, memory=0.015)


def test_the_lanes_share_what_is_left() -> None:
    read = float(COST.kv_read_seconds(STEP.kv_tokens))
    prefill, decode = work_left(RemainingWork(50.0, 40.0), STEP, None, COST)
    assert decode == pytest.approx(40.0 * 0.017 / read)
    assert prefill + 40.0 * STEP.compute / read == pytest.approx(50.0)


@pytest.mark.parametrize("rest", [RemainingWork(0.0, 0.0), RemainingWork(0.1, 40.0)])
def test_with_nothing_planned_the_lanes_end_together(rest: RemainingWork) -> None:
    beside = Load(2048, 0, 0.03, 0.0)
    assert work_left(rest, STEP, beside, COST) == (0.03, pytest.approx(0.017))
    assert work_left(rest, STEP, None, COST) == (pytest.approx(0.017), pytest.approx(0.017))
