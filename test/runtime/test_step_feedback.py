"""Measured step times reach the pace, and only where it weighs compute against memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.policy.pace import BalancePace, FixedPace
from sglang.srt.blendserve.runtime.ranks import RankGroup
from sglang.srt.blendserve.runtime.record import step_feedback
from sglang.srt.blendserve.runtime.record.step_feedback import StepFeedback

MODEL = ModelSpec.from_config(
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    name="Llama-3.1-8B",
)
COST = CostModel(MODEL, DeviceSpec.named("H200"))


def policy_at(pace: Any) -> Any:
    """What the feedback reads and sets of a step policy."""
    return SimpleNamespace(pace=pace)


def feedback_of(policy: Any, *, one_behind: bool = False) -> StepFeedback:
    return StepFeedback(policy, COST, one_behind=one_behind, ranks=RankGroup())


def mixed_batch(prefill: int, decodes: int, context: int) -> Any:
    """One prompt of ``prefill`` tokens and some decodes in one step."""
    request = SimpleNamespace(origin_input_ids=[0] * context, output_ids=[0])
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: True),
        reqs=[request] * (1 + decodes),
        decoding_reqs=[request] * decodes,
        extend_lens=[prefill] + [1] * decodes,
        prefix_lens=[0] + [context] * decodes,
    )


class Device:
    """Runs steps on a clock of its own, each kind of work slower than its peak by a factor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factors: tuple[float, float]) -> None:
        self.now = 0.0
        self.factors = factors
        monkeypatch.setattr(step_feedback.time, "perf_counter", lambda: self.now)

    def run(self, policy: Any, steps: int, *, behind: int = 0) -> StepFeedback:
        feedback = feedback_of(policy, one_behind=bool(behind))
        rng = np.random.default_rng(0)
        took = [0.0] * behind
        for _ in range(steps):
            batch = mixed_batch(int(rng.integers(1, 4000)), int(rng.integers(1, 200)), 1500)
            feedback.launched(batch)
            compute, memory = feedback._work(batch)
            took.append(self.factors[0] * compute + self.factors[1] * memory)
            self.now += took[len(took) - 1 - behind]
        return feedback


@pytest.mark.parametrize("behind", [0, 1], ids=["one after the other", "overlap schedule"])
def test_the_pace_follows_what_steps_take(monkeypatch: pytest.MonkeyPatch, behind: int) -> None:
    policy = policy_at(BalancePace(COST, 400_000, 8192))
    feedback = Device(monkeypatch, (1.8, 1.1)).run(policy, 320, behind=behind)
    compute, memory = feedback.factors
    assert compute / memory == pytest.approx(1.8 / 1.1, rel=0.1)
    assert policy.pace.cost.device.peak_flops < COST.device.peak_flops


def test_a_fixed_pace_has_nothing_to_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_at(FixedPace(512))
    feedback = Device(monkeypatch, (1.8, 1.1)).run(policy, 320)
    assert feedback.fit.steps == 0
    assert policy.pace == FixedPace(512)


def test_time_without_work_is_not_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, (1.0, 1.0))
    feedback = feedback_of(policy_at(BalancePace(COST, 400_000, 8192)))
    for _ in range(100):
        feedback.launched(mixed_batch(512, 100, 1500))
        feedback.idle()
        device.now += 60
    assert feedback.fit.steps == 0
