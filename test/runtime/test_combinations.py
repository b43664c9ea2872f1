"""The policy inside the real engine, with the flags it must work with.

Every run is checked against stock SGLang's answers in float32, with SGLang's own strict memory
checks on: a KV slot that is lost or counted twice in any step ends the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_process import rank_cores, run
from two_releases import OLD

pytestmark = pytest.mark.engine

COMBINATIONS: dict[str, dict[str, Any]] = {
    "overlap schedule, mixed chunk, small pool": {
        "max_total_tokens": 1500,
        "blendserve_mixed_chunk": "on",
        "blendserve_pace": "marginal",
    },
    "no overlap schedule, page 16": {
        "disable_overlap_schedule": True,
        "page_size": 16,
        "blendserve_mixed_chunk": "on",
    },
    "prefill and decode apart": {"blendserve_mixed_chunk": "off"},
    # Without chunks SGLang sets memory aside for the longest prompt: more than small machines have.
    "prompts in one piece": {"chunked_prefill_size": -1, "mem_fraction_static": 0.5},
    "two data parallel ranks": {"dp_size": 2},
    "two tensor parallel ranks": {"tp_size": 2},
}


@pytest.mark.parametrize("flags", COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_answers_are_those_of_stock_sglang(
    flags: dict[str, Any], tiny_model: Path, stock_run: dict[str, Any], tmp_path: Path
) -> None:
    engine = {
        "model_path": str(tiny_model),
        "schedule_policy": "blendserve",
        "max_total_tokens": 2000,
        "chunked_prefill_size": 64,
        **flags,
    }
    result = run(tmp_path, engine, env=rank_cores(flags))
    assert result["answers"] == stock_run["answers"]
    for state in result["state"]:
        assert state["plans_made"] >= 1
        assert state["waiting"] == 0
        assert state["running"] == 0


@pytest.mark.skipif(
    not OLD and not torch.cpu._is_amx_tile_supported(),
    reason="on a CPU without AMX, SGLang 0.5.23 refuses an fp8 KV cache",
)
def test_answers_with_an_fp8_kv_cache_are_those_of_stock_sglang(
    tiny_model: Path, stock_run: dict[str, Any], tmp_path: Path
) -> None:
    engine = {"model_path": str(tiny_model), "kv_cache_dtype": "fp8_e4m3"}
    stock = run(tmp_path, {**engine, "max_total_tokens": 20_000}, env={"SGLANG_PLUGINS": "none"})
    # No attention backend given: blend_cpu does not take such a cache, so another one is chosen.
    result = run(
        tmp_path,
        {
            **engine,
            "attention_backend": None,
            "schedule_policy": "blendserve",
            "max_total_tokens": 2000,
            "chunked_prefill_size": 64,
        },
    )
    assert stock["answers"] != stock_run["answers"], "the cache is not in fp8"
    assert result["answers"] == stock["answers"]
    assert result["state"][0]["plans_made"] >= 1


def test_with_another_policy_nothing_of_ours_runs(
    tiny_model: Path, stock_run: dict[str, Any], tmp_path: Path
) -> None:
    result = run(tmp_path, {"model_path": str(tiny_model), "max_total_tokens": 20_000})
    for figure in ("answers", "cached_tokens", "retractions"):
        assert result[figure] == stock_run[figure]
    # SGLang 0.5.17 shows the settings there, as they are among its server arguments.
    assert "plans_made" not in (result["state"][0] or {})
