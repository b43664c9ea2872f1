"""A fault in the plan, the policy or the planning thread ends no request, let alone the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_process import run

from sglang.srt.blendserve.runtime.injected_fault import VARIABLE, InjectedFault

SMALL = {"max_total_tokens": 1500, "chunked_prefill_size": 64}


@pytest.mark.engine
@pytest.mark.parametrize("fault", ["policy:12", "thread:1"])
def test_a_planner_that_fails_leaves_the_answers_as_they_are(
    fault: str, stock_run: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    engine = {"model_path": str(tiny_model), "schedule_policy": "blendserve", **SMALL}
    result = run(tmp_path, engine, env={VARIABLE: fault})
    assert result["answers"] == stock_run["answers"]
    state = result["state"][0]
    assert state["planner_failures"] == 1
    assert (state["waiting"], state["running"]) == (0, 0)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("BlendServe's planner failed") == 1
    assert "FaultAskedFor" in log  # the traceback


@pytest.mark.parametrize("text", ["kill", "kill:", "sleep:3", "plan:x"])
def test_a_fault_that_there_is_not_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match=r"must be|invalid literal"):
        InjectedFault.asked_for()


def test_without_the_variable_there_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert InjectedFault.asked_for() is None
