"""Time of one engine step, at the peak rates of a data sheet or at shares of them.

`measured_steps` has the times by measured kernels; both are a `StepModel`.

    GEMM       2 P per token, not below the time to load the weights once
    prefill    causal attention of the prompt tokens over their context
    decode     the KV cache of all running requests, read once; its attention's arithmetic beside it
    overhead   a fixed time per step

``sequential``: one after the other, as stock SGLang runs them: max(GEMM, weights) + prefill
attention + max(decode arithmetic, KV read) + overhead. ``overlap``: compute and memory work side by
side: max(all compute, KV read + weights) * interference + overhead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.workload import Workload

ENGINES = ("overlap", "sequential", "ideal")
"""Kinds of engine at data-sheet rates: compute and memory work side by side at the calibration's
interference, one after the other, or side by side at no cost (an upper limit)."""


class StepWork(NamedTuple):
    """What one step computes."""

    prefill_tokens: int
    prefill_scores: float
    """Pairs of prompt token and context token that attend, causal."""
    sampled: int
    """Prompts that end in this step and give their first output token."""
    decodes: int
    kv_tokens: int
    """KV tokens that the decodes read."""


class StepTime(NamedTuple):
    """Seconds of a step: busy compute, busy memory, and what passes on the clock."""

    compute: float
    memory: float
    seconds: float


class LeastTimes(NamedTuple):
    """Least seconds of a unit of work in any step; what bounds are made of."""

    prefill_token: float
    prefill_score: float
    decode_token: float
    sample_token: float
    kv_compute: float
    """Arithmetic of decode attention for one KV token, where it is counted as compute."""
    kv_read: float
    """Decode attention over one KV token."""
    weights: float
    """Reading the weights once; 0 where products have it in their time."""


class StepModel(Protocol):
    """What an engine's steps take."""

    @property
    def engine(self) -> str:
        """Kind of engine."""
        ...

    def step(self, work: StepWork) -> StepTime:
        """Return busy and elapsed seconds of a step with this ``work``."""
        ...

    def least(self) -> LeastTimes:
        """Return the least seconds of each unit of work."""
        ...

    def overlapped(self, compute: float, memory: float) -> float:
        """Return the least seconds that so much work of both kinds takes together."""
        ...


@dataclass(frozen=True, slots=True)
class StepCost:
    """Costs of steps on one device with one engine; plain floats, cheap to call."""

    engine: str
    prefill_token: float
    prefill_score: float
    decode_token: float
    sample_token: float
    decode_kv_compute: float
    kv_read: float
    dense_weights: float
    expert_weights: float
    expert_missed: float
    interference: float
    overhead: float
    whole_steps: bool = True
    """Whether interference slows down all of a step, or what overlaps alone."""

    @classmethod
    def of(
        cls, cost: CostModel, calibration: Calibration, engine: str, scale: float = 1
    ) -> StepCost:
        """Return step costs by the replica's ``cost``; ``scale`` is for the overhead."""
        if engine not in ENGINES:
            raise ValueError(
                f"--engine {engine}: not at data-sheet rates (choose from {', '.join(ENGINES)}); "
                "it needs measured kernel times"
            )
        model, device = cost.model, cost.device
        gemm = 2 / (device.peak_flops * calibration.gemm_efficiency)
        prefill = 1 / (device.peak_flops * calibration.attention_efficiency)
        bandwidth = device.bandwidth * calibration.bandwidth_efficiency
        weight_bandwidth = device.bandwidth * calibration.weights_efficiency
        byte = model.weight_bytes / model.parameters / weight_bandwidth
        dense = model.parameters - model.embedding_parameters - model.expert_parameters
        missed = 1 - model.experts_per_token / model.experts if model.experts else 0.0
        return cls(
            engine=engine,
            prefill_token=gemm * model.prefill_parameters,
            prefill_score=prefill * 4 * model.layers * model.attention_width,
            decode_token=gemm * model.active_parameters,
            sample_token=gemm * model.head_parameters,
            decode_kv_compute=prefill * 4 * model.layers * model.decode_attention_width,
            kv_read=model.kv_bytes_per_token / bandwidth,
            dense_weights=dense * byte,
            expert_weights=model.expert_parameters * byte,
            expert_missed=missed,
            interference=1.0 if engine == "ideal" else calibration.interference,
            overhead=calibration.step_overhead / scale,
            whole_steps=calibration.interference_scope == "step",
        )

    def overlapped(self, compute: float, memory: float) -> float:
        """Seconds that ``compute`` and ``memory`` seconds of work take when they overlap."""
        longer = max(compute, memory)
        slowed = longer if self.whole_steps else min(compute, memory)
        return longer + (self.interference - 1) * slowed

    def step(self, work: StepWork) -> StepTime:
        """Busy and elapsed seconds of a step with this ``work``."""
        gemm = (
            self.prefill_token * work.prefill_tokens
            + self.sample_token * work.sampled
            + self.decode_token * work.decodes
        )
        prefill = self.prefill_score * work.prefill_scores
        decode = self.decode_kv_compute * work.kv_tokens
        tokens = work.prefill_tokens + work.decodes
        weights = self.dense_weights
        if self.expert_weights:
            weights += self.expert_weights * (1 - self.expert_missed**tokens)
        if not tokens:
            weights = 0.0
        read = self.kv_read * work.kv_tokens
        compute, memory = gemm + prefill + decode, read + weights
        if self.engine != "sequential":
            seconds = self.overlapped(compute, memory)
        else:
            seconds = max(gemm, weights) + prefill + max(decode, read)
        return StepTime(compute, memory, seconds + self.overhead)

    def least(self) -> LeastTimes:
        """Return the seconds of each unit of work."""
        return LeastTimes(
            prefill_token=self.prefill_token,
            prefill_score=self.prefill_score,
            decode_token=self.decode_token,
            sample_token=self.sample_token,
            kv_compute=self.decode_kv_compute,
            kv_read=self.kv_read,
            weights=self.dense_weights + self.expert_weights,
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time any schedule could take (docs/simulator.md)."""

    compute: float
    """All compute, each shared prefix once, seconds."""
    memory: float
    """All KV reads and the weights of the fewest steps there can be, seconds."""
    seconds: float
    """The larger one, with the interference of two resources that are both in use."""


def bound(workload: Workload, cost: StepModel, kv_slots: int) -> Bound:
    """The optimum with perfect overlap and sharing, and the KV cache full in every step.

    A prefix that several requests share is read for each of them and stored once: the fewest steps
    there can be are those of what is stored.
    """
    p = workload.prompt_tokens.astype(np.float64)
    own = workload.computed_tokens().astype(np.float64)
    steps = workload.output_tokens - 1.0
    generated = steps * (steps + 1) / 2
    kv, stored = (float((steps * prompt + generated).sum()) for prompt in (p, own))
    scores = float((own * (p - own + own / 2)).sum())
    least = cost.least()
    compute = (
        least.prefill_token * float(own.sum())
        + least.prefill_score * scores
        + least.sample_token * p.size
        + least.decode_token * float(steps.sum())
        + least.kv_compute * kv
    )
    memory = least.kv_read * kv + least.weights * stored / kv_slots
    return Bound(compute, memory, cost.overlapped(compute, memory))


def replica_model(model: ModelSpec, scale: float) -> ModelSpec:
    """The model of a 1/``scale`` replica: parameters and weight bytes divided by ``scale``."""
    if scale == 1:
        return model
    return replace(
        model,
        name=f"{model.name}/{scale:g}",
        parameters=round(model.parameters / scale),
        embedding_parameters=round(model.embedding_parameters / scale),
        head_parameters=round(model.head_parameters / scale),
        expert_parameters=round(model.expert_parameters / scale),
        weight_bytes=model.weight_bytes / scale,
    )
