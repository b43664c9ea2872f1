"""The policy inside the real engine, with the flags it must work with.

Every run is checked against stock SGLang's answers in float32, with SGLang's own strict memory
checks on: a KV slot that is lost or counted twice in any step ends the run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent

LONG_PROMPT = 150
"""Tokens; more than the chunk of the runs below."""


CHECKS = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "2"}

TWO_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_NCCL_SO_PATH": "none"}
"""SGLang wants a NUMA node for each tensor parallel rank unless it is told which cores to use.
The other variable: see `cpu_defaults.ENVIRONMENT`."""


def workload() -> list[list[Any]]:
    """Shared prefixes with short answers, long prompts, and short prompts with long answers."""
    rng = random.Random(0)
    word = lambda: rng.randrange(1000, 40_000)  # noqa: E731
    prefixes = [[word() for _ in range(60)] for _ in range(3)]
    requests: list[list[Any]] = []
    for number in range(45):
        if number % 3 == 0:
            prompt, tokens = [*prefixes[number % 4 % 3], *(word() for _ in range(6))], 3
        elif number % 3 == 1:
            prompt, tokens = [word() for _ in range(LONG_PROMPT)], 8
        else:
            prompt, tokens = [word() for _ in range(5)], 60
        ends_by_itself = number % 2 == 0
        requests.append(
            [prompt, {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": not ends_by_itself}]
        )
    return requests


def run(
    tmp_path: Path, engine: dict[str, Any], *, env: dict[str, str] | None = None, **order: Any
) -> dict[str, Any]:
    """One engine in a process of its own."""
    source, target = tmp_path / "order.json", tmp_path / "answers.json"
    source.write_text(json.dumps({"engine": engine, "requests": workload(), **order}))
    log = tmp_path / "log.txt"
    with log.open("w") as output:  # a pipe would stay open as long as any of SGLang's processes
        done = subprocess.run(
            [sys.executable, str(HERE / "engine_run.py"), str(source), str(target)],
            env=os.environ | CHECKS | (env or {}),
            stdout=output,
            stderr=output,
            timeout=400,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-4000:]
    result: dict[str, Any] = json.loads(target.read_text())
    return result


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """Stock SGLang, the plugin kept out."""
    return run(
        tmp_path_factory.mktemp("stock"),
        {"model_path": str(tiny_model), "max_total_tokens": 20_000},
        env={"SGLANG_PLUGINS": "none"},
    )


COMBINATIONS: dict[str, dict[str, Any]] = {
    "overlap schedule, mixed chunk, small pool": {
        "max_total_tokens": 1500,
        "blendserve_mixed_chunk": "on",
        "blendserve_pace": "ratio",
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
    flags: dict[str, Any], tiny_model: Path, stock: dict[str, Any], tmp_path: Path
) -> None:
    engine = {
        "model_path": str(tiny_model),
        "schedule_policy": "blendserve",
        "max_total_tokens": 2000,
        "chunked_prefill_size": 64,
        **flags,
    }
    result = run(tmp_path, engine, env=TWO_RANKS if "tp_size" in flags else None)
    assert result["answers"] == stock["answers"]
    for state in result["state"]:
        assert state["plans_made"] >= 1
        assert state["waiting"] == 0
        assert state["running"] == 0


def test_with_another_policy_nothing_of_ours_runs(
    tiny_model: Path, stock: dict[str, Any], tmp_path: Path
) -> None:
    result = run(tmp_path, {"model_path": str(tiny_model), "max_total_tokens": 20_000})
    for figure in ("answers", "cached_tokens", "retractions"):
        assert result[figure] == stock[figure]
    assert "plans_made" not in result["state"][0]
