"""What a run adds up and reports."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sglang.srt.blendserve.answering.observer import Observation
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.run import accounts as accounts_module
from sglang.srt.blendserve.run.accounts import Accounts
from sglang.srt.blendserve.run.hindsight import Hindsight, look_back
from sglang.srt.blendserve.run.progress import Progress
from sglang.srt.blendserve.run.summary import Summary


def seen(*prompts: list[int], lengths: list[int], **fields: object) -> Observation:
    observation = Observation(
        prompt_tokens=sum(len(p) for p in prompts),
        completion_tokens=sum(lengths),
        prompts=[np.array(p, dtype=np.int32) for p in prompts],
        output_lengths=lengths,
    )
    return replace(observation, **fields)  # type: ignore[arg-type]


@pytest.fixture
def cost() -> CostModel:
    return CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))


def test_accounts_add_up() -> None:
    accounts = Accounts()
    accounts.add(seen([1, 2, 3], lengths=[5], cached_tokens=2, retractions=1))
    accounts.add(seen([1, 2], [4, 5, 6], lengths=[1, 2, 3, 4]))
    accounts.add(Observation(prompts=[np.array([1, 2], dtype=np.int32)]))  # refused
    assert (accounts.input_tokens, accounts.output_tokens) == (8, 15)
    assert (accounts.cached_tokens, accounts.retractions) == (2, 1)
    assert accounts.prompts is not None
    assert [p.tokens.tolist() for p in accounts.prompts] == [[1, 2, 3], [1, 2], [4, 5, 6]]
    assert [p.output_lengths for p in accounts.prompts] == [[5], [1, 2], [3, 4]]


def test_prompts_are_dropped_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "MAX_KEPT_TOKENS", 4)
    accounts = Accounts()
    accounts.add(seen([1, 2], lengths=[1]))
    assert accounts.prompts
    accounts.add(seen([1, 2, 3], lengths=[1]))
    accounts.add(seen([1], lengths=[1]))
    assert accounts.prompts is None
    assert accounts.input_tokens == 6


def test_the_optimum_counts_each_shared_prefix_once(cost: CostModel) -> None:
    accounts = Accounts()
    shared = list(range(100))
    for last in range(4):
        accounts.add(seen([*shared, 200 + last], lengths=[10], max_tokens=10, known_length=True))
    found = look_back(accounts.prompts or [], cost)
    assert found.sharing_optimum == pytest.approx(300 / 404)
    assert found.planned_density == pytest.approx(found.measured_density)


def test_namespaces_share_nothing(cost: CostModel) -> None:
    accounts = Accounts()
    for namespace in ("a", "b"):
        accounts.add(seen([1, 2, 3], lengths=[10], namespace=namespace))
    assert look_back(accounts.prompts or [], cost).sharing_optimum == 0


def test_longer_answers_than_expected_lower_the_density(cost: CostModel) -> None:
    accounts = Accounts()
    accounts.add(seen(list(range(500)), lengths=[5000], max_tokens=8000))
    found = look_back(accounts.prompts or [], cost)
    assert found.planned_density is not None
    assert found.measured_density is not None
    assert found.measured_density < found.planned_density


def test_several_answers_are_several_requests_in_density_only(cost: CostModel) -> None:
    once, thrice = Accounts(), Accounts()
    once.add(seen(list(range(50)), lengths=[40]))
    thrice.add(seen(list(range(50)), lengths=[40, 40, 40]))
    one, three = look_back(once.prompts or [], cost), look_back(thrice.prompts or [], cost)
    assert one.sharing_optimum == three.sharing_optimum == 0
    assert one.measured_density is not None
    assert three.measured_density is not None
    assert three.measured_density < one.measured_density  # the prompt is computed once


def test_nothing_answered_or_no_cost_model() -> None:
    assert look_back([], None) == Hindsight(None, None, None)
    accounts = Accounts()
    accounts.add(seen([1], lengths=[1]))
    assert look_back(accounts.prompts or [], None) == Hindsight(0.0, None, None)


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
    stream = io.StringIO()
    with Progress(4, 1, stream) as progress:
        for _ in range(2):
            progress.advance(300, 90)
            progress.refresh()
        assert stream.getvalue() == ""
        for _ in range(31):
            now[0] += 1
            progress.advance(20, 10)
            progress.refresh()
    [line] = stream.getvalue().splitlines()
    assert line == "33/4 requests, prefill 20 tok/s, decode 10 tok/s"
