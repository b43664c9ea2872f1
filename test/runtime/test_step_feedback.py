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
from sglang.srt.blendserve.runtime.record.step_feedback import StepFeedback
from sglang.srt.blendserve.runtime.record.step_timer import StepTimer

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


def feedback_of(policy: Any) -> StepFeedback:
    return StepFeedback(policy, COST, ranks=RankGroup())


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

    def __init__(self, factors: tuple[float, float]) -> None:
        self.now = 0.0
        self.factors = factors

    def timer(self, feedback: StepFeedback, *, behind: int = 0) -> StepTimer:
        return StepTimer(COST, [feedback], one_behind=bool(behind), clock=lambda: self.now)

    def run(self, policy: Any, steps: int, *, behind: int = 0) -> StepFeedback:
        feedback = feedback_of(policy)
        timer = self.timer(feedback, behind=behind)
        rng = np.random.default_rng(0)
        took = [0.0] * behind
        for _ in range(steps):
            batch = mixed_batch(int(rng.integers(1, 4000)), int(rng.integers(1, 200)), 1500)
            load = timer.launched(batch)
            decode = float(COST.decode_compute_seconds(load.decodes, load.kv_tokens))
            weights = COST.weights_seconds(load.prompt_tokens + load.decodes)
            memory = float(COST.kv_read_seconds(load.kv_tokens) + weights)
            took.append(self.factors[0] * (load.prefill + decode) + self.factors[1] * memory)
            self.now += took[len(took) - 1 - behind]
        return feedback


@pytest.mark.parametrize("behind", [0, 1], ids=["one after the other", "overlap schedule"])
def test_the_pace_follows_what_steps_take(behind: int) -> None:
    policy = policy_at(BalancePace(COST, 400_000, 8192))
    feedback = Device((1.8, 1.1)).run(policy, 330, behind=behind)
    compute, memory = feedback.factors
    assert compute / memory == pytest.approx(1.8 / 1.1, rel=0.1)
    assert policy.pace.cost.device.peak_flops < COST.device.peak_flops


def test_a_fixed_pace_has_nothing_to_correct() -> None:
    policy = policy_at(FixedPace(512))
    feedback = Device((1.8, 1.1)).run(policy, 320)
    assert feedback.fit.steps == 0
    assert policy.pace == FixedPace(512)


def test_time_without_work_is_not_a_step() -> None:
    device = Device((1.0, 1.0))
    feedback = feedback_of(policy_at(BalancePace(COST, 400_000, 8192)))
    timer = device.timer(feedback)
    for _ in range(100):
        timer.launched(mixed_batch(512, 100, 1500))
        timer.idle()
        device.now += 60
    assert feedback.fit.steps == 0
