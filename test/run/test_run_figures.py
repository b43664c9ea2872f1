"""What a run adds up and reports."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sglang.srt.blendserve.answering import totals as totals_module
from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.answering.totals import JobTotals, tally_of
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.planned_lines import Standing
from sglang.srt.blendserve.run.plan_figures import PlanFigures, plan_figures
from sglang.srt.blendserve.run.progress import Progress
from sglang.srt.blendserve.run.summary import Summary
from sglang.srt.blendserve.store.tally import Tally


def seen(*prompts: list[int], lengths: list[int], **fields: object) -> Observation:
    observation = Observation(
        prompt_tokens=sum(len(p) for p in prompts),
        completion_tokens=sum(lengths),
        prompts=[np.array(p, dtype=np.int32) for p in prompts],
        output_lengths=lengths,
    )
    return replace(observation, **fields)  # type: ignore[arg-type]


def count(totals: JobTotals, observation: Observation) -> None:
    """Add a line that was answered so, or refused if it has no answer."""
    status = 200 if observation.output_lengths else 400
    body = {"usage": {"reasoning_tokens": 1}} if status == 200 else {"error": {}}
    response = Response(status_code=status, request_id="r", body=body)
    totals.add(tally_of(response, observation), observation)


@pytest.fixture
def cost() -> CostModel:
    return CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))


def test_totals_add_up() -> None:
    totals = JobTotals()
    count(totals, seen([1, 2, 3], lengths=[5], cached_tokens=2, retractions=1))
    count(totals, seen([1, 2], [4, 5, 6], lengths=[1, 2, 3, 4]))
    count(totals, Observation(prompts=[np.array([1, 2], dtype=np.int32)]))  # refused
    totals.add(tally_of(Response(status_code=500, request_id="r", body={}), None))  # it raised
    assert totals.tally == Tally(2, 2, 8, 2, 15, 2)
    assert totals.retractions == 1
    assert totals.prompts is not None
    assert [p.tokens.tolist() for p in totals.prompts] == [[1, 2, 3], [1, 2], [4, 5, 6]]
    assert [p.output_lengths for p in totals.prompts] == [[5], [1, 2], [3, 4]]


def test_prompts_are_dropped_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals_module, "MAX_KEPT_TOKENS", 4)
    totals = JobTotals()
    count(totals, seen([1, 2], lengths=[1]))
    assert totals.prompts
    count(totals, seen([1, 2, 3], lengths=[1]))
    count(totals, seen([1], lengths=[1]))
    assert totals.prompts is None
    assert totals.tally.input_tokens == 6


def test_the_optimum_counts_each_shared_prefix_once(cost: CostModel) -> None:
    totals = JobTotals()
    shared = list(range(100))
    for last in range(4):
        count(totals, seen([*shared, 200 + last], lengths=[10], max_tokens=10, known_length=True))
    found = plan_figures(totals.prompts or [], cost)
    assert found.sharing_optimum == pytest.approx(300 / 404)
    assert found.planned_density == pytest.approx(found.measured_density)


def test_namespaces_share_nothing(cost: CostModel) -> None:
    totals = JobTotals()
    for namespace in ("a", "b"):
        count(totals, seen([1, 2, 3], lengths=[10], namespace=namespace))
    assert plan_figures(totals.prompts or [], cost).sharing_optimum == 0


def test_longer_answers_than_expected_lower_the_density(cost: CostModel) -> None:
    totals = JobTotals()
    count(totals, seen(list(range(500)), lengths=[5000], max_tokens=8000))
    found = plan_figures(totals.prompts or [], cost)
    assert found.planned_density is not None
    assert found.measured_density is not None
    assert found.measured_density < found.planned_density


def test_several_answers_are_several_requests_in_density_only(cost: CostModel) -> None:
    once, thrice = JobTotals(), JobTotals()
    count(once, seen(list(range(50)), lengths=[40]))
    count(thrice, seen(list(range(50)), lengths=[40, 40, 40]))
    one, three = plan_figures(once.prompts or [], cost), plan_figures(thrice.prompts or [], cost)
    assert one.sharing_optimum == three.sharing_optimum == 0
    assert one.measured_density is not None
    assert three.measured_density is not None
    assert three.measured_density < one.measured_density  # the prompt is computed once


def test_nothing_answered_or_no_cost_model() -> None:
    assert plan_figures([], None) == PlanFigures(None, None, None)
    totals = JobTotals()
    count(totals, seen([1], lengths=[1]))
    assert plan_figures(totals.prompts or [], None) == PlanFigures(0.0, None, None)


SUMMARY = Summary(
    policy="blendserve",
    finished=False,
    requests=10,
    completed=6,
    failed=1,
    resumed=2,
    input_tokens=100,
    output_tokens=50,
    cached_tokens=25,
    seconds=10.0,
    startup_seconds=3.0,
    prepare_seconds=None,
    first_forward_seconds=0.5,
    tokens_per_second=15.0,
    prefix_sharing=0.25,
    prefix_sharing_optimum=0.5,
    retractions=0,
    planned_density=1.5,
    measured_density=2.0,
    note=None,
)


def test_the_summary_as_json_has_the_promised_keys(tmp_path: Path) -> None:
    SUMMARY.write(tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    promised = {
        "policy", "requests", "completed", "failed", "input_tokens", "output_tokens",
        "cached_tokens", "seconds", "startup_seconds", "tokens_per_second", "prefix_sharing",
        "prefix_sharing_optimum", "retractions", "planned_density", "measured_density",
        "sglang_version", "blendserve_version",
    }  # fmt: skip
    assert promised <= found.keys()
    assert found["completed"] == 6


def test_the_summary_for_a_person() -> None:
    text = "\n".join(SUMMARY.lines())
    expected = (
        "6 completed, 1 failed, 3 still to do (2 of them by an earlier run)",
        "15.0 tokens/s",
        "25.0%, 50.0% at the optimum",
    )
    for part in expected:
        assert part in text
    unknown = replace(
        SUMMARY,
        prefix_sharing_optimum=None,
        planned_density=None,
        measured_density=None,
        note="why",
    )
    assert "why" in "\n".join(unknown.lines())


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream, left = io.StringIO(), RemainingWork(0.0, 0.0)
    with Progress(100, 1, stream) as progress:
        tally = Tally()
        for _ in range(2):
            tally = tally.plus(Tally(1, 0, 300, 0, 90))
            progress.show(tally, 2, Standing(40, 30, 0.0, left))
        assert stream.getvalue() == ""
        for _ in range(31):
            now[0] += 1
            tally = tally.plus(Tally(1, 0, 25, 5, 10))
            progress.show(tally, 2, Standing(40, 30, (now[0] - 100) / 200, left))
    [line] = stream.getvalue().splitlines()
    assert line == (
        "33/100 requests, 40 prepared, 30 planned, 2 running, prefill 20 tok/s, decode 10 tok/s, "
        "02:50 left"
    )
