"""What an engine step takes, over the tokens of prompts that it computes beside its decodes.

A pace looks at the shape of this, not at its size: where the next prompt tokens are nearly free,
and where a step jumps because the tiles of a matrix product are full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_times import ModelTimes, measured_times

CONTEXT = 512
"""Tokens that a prompt token is taken to attend to. Unproven; what grows with the tokens alone
moves no corner of the shape."""


FIXED_STEP_SECONDS = 2e-3
"""What a step takes beside its kernels: launches, sampling, the gap to the next one. Unproven."""


class StepSeconds(Protocol):
    """What a step takes, seconds."""

    def __call__(self, prompt_tokens: int, decodes: int, kv_tokens: float) -> float:
        """Return the seconds of a step with so many prompt tokens and decodes.

        ``kv_tokens``: cached tokens that the decodes attend to, summed over them.
        """
        ...


@dataclass(frozen=True, slots=True)
class KernelSteps:
    """Steps of stock SGLang by measured kernels, one after the other."""

    times: ModelTimes

    def __call__(self, prompt_tokens: int, decodes: int, kv_tokens: float) -> float:
        """Return the seconds of a step; see `StepSeconds`."""
        times, tokens = self.times, prompt_tokens + decodes
        products = times.body(tokens) + times.head(decodes) + times.token * tokens
        prompts = times.prefill_attention(prompt_tokens, prompt_tokens * CONTEXT)
        attention = prompts + times.decode_attention(decodes, kv_tokens)
        return products + attention + times.fixed + FIXED_STEP_SECONDS


@dataclass(frozen=True, slots=True)
class RateSteps:
    """Steps of stock SGLang by the rates of a device: the weights hide behind enough tokens."""

    cost: CostModel

    def __call__(self, prompt_tokens: int, decodes: int, kv_tokens: float) -> float:
        """Return the seconds of a step; see `StepSeconds`."""
        cost = self.cost
        products = cost.prompt_token_seconds() * prompt_tokens
        products += float(cost.decode_compute_seconds(decodes))
        weights = float(cost.weights_seconds(prompt_tokens + decodes))
        attention = float(cost.decode_compute_seconds(0, kv_tokens))
        read = float(cost.kv_read_seconds(kv_tokens))
        return max(products, weights) + max(attention, read) + FIXED_STEP_SECONDS


def stock_steps(cost: CostModel) -> StepSeconds:
    """Return what steps of stock SGLang take: by measured kernels where the table of the device
    holds the model's shapes, else by the rates of ``cost``."""
    try:
        # By the data sheet: the device of a planner may already be one at measured rates.
        device = DeviceSpec.named(cost.device.base_name).tensor_parallel(cost.device.ranks)
        return KernelSteps(measured_times(cost.model, device))
    except ValueError:
        return RateSteps(cost)
