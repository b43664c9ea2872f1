"""LoRA adapters under the policy: stock SGLang's answers, with fewer adapters at once than used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import unpinned
from engine_process import run, workload
from lora_adapter import write_adapter

pytestmark = pytest.mark.engine


def test_answers_of_adapters_are_those_of_stock_sglang(
    tiny_model: Path, stock_run: dict[str, Any], tmp_path: Path
) -> None:
    env = unpinned.declare(tmp_path)
    adapters = {name: str(write_adapter(tmp_path / name, tiny_model, ord(name))) for name in "ab"}
    used = [[None, "a", "b"][number // 3 % 3] for number in range(len(workload()))]
    engine = {
        "model_path": str(tiny_model),
        "enable_lora": True,
        "lora_paths": adapters,
        "lora_backend": "torch_native",
    }
    stock = run(
        tmp_path,
        {**engine, "max_total_tokens": 20_000, "max_loras_per_batch": 3},
        env={**env, "SGLANG_PLUGINS": unpinned.NAME},
        call={"lora_path": used},
    )
    blend = run(
        tmp_path,
        {
            **engine,
            "max_total_tokens": 2000,
            "chunked_prefill_size": 64,
            "max_loras_per_batch": 2,  # the base model counts as one
            "schedule_policy": "blendserve",
            "blendserve_list_window": 8,
        },
        env=env,
        call={"lora_path": used},
    )
    assert blend["answers"] == stock["answers"]
    assert blend["state"][0]["plans_made"] >= 1
    assert blend["state"][0]["waiting"] == blend["state"][0]["running"] == 0
    changed = [a != b for a, b in zip(stock["answers"], stock_run["answers"], strict=True)]
    assert changed == [name is not None for name in used]
