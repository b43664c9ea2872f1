"""Prefill and decode on two lanes, emulated on the CPU, inside the real engine.

The lanes report the ends of their work in a drawn order, so decodes pass prefills and prefills
decodes. Answers must be those of stock SGLang, which knows neither the policy nor the lanes.

    pytest test/gpu/test_overlap_engine.py
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from engine_process import CHECKS, TWO_RANKS, play, run
from session_run import POOL

pytestmark = pytest.mark.engine

SMALL_POOL = 400
"""KV slots that do not hold what the policy admits: some requests are given back."""

LANES = {
    "schedule_policy": "blendserve",
    "blendserve_overlap": "chunks",
    "blendserve_overlap_chunk": 64,
    # Without chunks SGLang sets memory aside for long prompts: more than small machines have.
    "mem_fraction_static": 0.5,
}

COMBINATIONS: dict[str, dict[str, Any]] = {
    "whole prompts, a few layers at a time": {"blendserve_overlap": "layers"},
    "chunks, divisions by the controller": {},
    "chunks, both on all SMs, small pool": {
        "blendserve_overlap_sm": "shared",
        "max_total_tokens": SMALL_POOL,
    },
    "two tensor parallel ranks": {"tp_size": 2},
    "in turns": {"blendserve_overlap_sm": "turns"},
}


@pytest.mark.parametrize("flags", COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_answers_are_those_of_stock_sglang(
    flags: dict[str, Any], tiny_model: Path, stock_run: dict[str, Any], tmp_path: Path
) -> None:
    engine = {
        "model_path": str(tiny_model),
        "max_total_tokens": 2000,
        **LANES,
        "blendserve_trace": str(tmp_path / "steps.csv"),
        **flags,
    }
    result = run(tmp_path, engine, env=TWO_RANKS if "tp_size" in flags else None)
    assert result["answers"] == stock_run["answers"]
    state = result["state"][0]
    lanes = state["lanes"]
    assert state["waiting"] == state["running"] == 0
    assert lanes["prefill_batches"] >= 10
    if flags.get("blendserve_overlap_sm") == "turns":
        assert lanes["in_turns"]
        assert lanes["decode_steps_beside_prefill"] == 0
    elif not lanes["turn_changes"]:
        # Decodes went on while prompts were computed.
        assert lanes["decode_steps_beside_prefill"] >= 10
        # Most steps were launched before the results of the step before were looked at.
        assert lanes["decode_steps_ahead"] > lanes["decode_steps"] / 2
    if flags.get("max_total_tokens") == SMALL_POOL:
        assert result["retractions"] > 0
    traces = sorted(tmp_path.glob("steps*.lanes.csv"))
    assert len(traces) == flags.get("tp_size", 1)
    for trace in traces:
        check_trace(trace, lanes, at_once=not lanes["turn_changes"] and not lanes["in_turns"])


def test_aborted_jobs_and_lost_clients_leave_nothing_behind(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Requests that go while their prompts or decodes are in flight on a lane."""
    parts = ["aborted_job", "lost_clients", "too_large"]
    engine = {"model_path": str(tiny_model), "max_total_tokens": POOL, **LANES}
    result = play("session_run.py", tmp_path, {"engine": engine, "parts": parts}, CHECKS)
    job = result["aborted_job"]
    assert [len(ids) for ids in job["kept"]] == [5 + 3 * n for n in range(12)]
    assert set(job["gone"]) == {"abort"}
    assert all("disconnected" in error for error in result["lost_clients"]["errors"])
    large = result["too_large"]
    assert [bool(ids) for ids in large["ids"]] == [True, True, False, True]
    assert result["flushed"]
    state = result["state"][0]
    assert (state["waiting"], state["running"]) == (0, 0)
    assert state["kv_free"] == state["kv_slots"] == POOL


def check_trace(path: Path, lanes: dict[str, Any], *, at_once: bool) -> None:
    """The lane trace: a row for all that ran, each lane one thing at a time, ``at_once`` both."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    of = {name: [r for r in rows if r["lane"] == name] for name in ("prefill", "decode")}
    assert len(of["prefill"]) == lanes["prefill_batches"]
    assert len(of["decode"]) == lanes["decode_steps"]
    for lane in of.values():
        starts = [float(row["launched_seconds"]) for row in lane]
        ends = [float(row["ended_seconds"]) for row in lane]
        assert starts == sorted(starts)
        assert ends == sorted(ends)
    if not at_once:
        return
    assert any(
        float(p["launched_seconds"]) < float(d["ended_seconds"]) < float(p["ended_seconds"])
        for p in of["prefill"]
        for d in of["decode"]
    ), "no decode ended while a prefill was in flight"
