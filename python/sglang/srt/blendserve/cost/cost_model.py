"""Cost model (paper section 4): compute and memory seconds of requests and of single steps.

Compute is floating-point work at peak speed, memory is KV cache and weight traffic at peak
bandwidth. Compute density is their ratio: above 1 a request is compute-bound, below 1
memory-bound. All methods take scalars or float arrays of any one shape and return that shape.

Two refinements over the paper's formulas, which change a dense model's numbers by some per cent:
the output head is multiplied only for tokens that are sampled, and causal attention does half of
the p x p score work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec

Floats = NDArray[np.float64]


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds that work of ``model`` takes on ``device`` (paper section 4)."""

    model: ModelSpec
    device: DeviceSpec

    def at_rates(self, compute: float, memory: float) -> CostModel:
        """This model on a device that takes so many times as long for compute and for memory."""
        device = replace(
            self.device,
            peak_flops=self.device.peak_flops / compute,
            bandwidth=self.device.bandwidth / memory,
        )
        return CostModel(self.model, device)

    def compute_seconds(
        self, prompt: ArrayLike, output: ArrayLike, computed_prompt: ArrayLike | None = None
    ) -> Floats:
        """Compute of requests with p prompt and d output tokens (paper's Comp), seconds.

        ``computed_prompt``: how many of the p tokens, its last ones, are really computed; the
        rest comes from the prefix cache (default: all p are computed).
        """
        p = _floats(prompt)
        computed = p if computed_prompt is None else _floats(computed_prompt)
        return self.prefill_seconds(computed, p - computed) + self.output_seconds(p, output)

    def output_seconds(self, prompt: ArrayLike, output: ArrayLike) -> Floats:
        """Compute of the d output tokens alone, attention over their context included, seconds."""
        p, d = _floats(prompt), _floats(output)
        return self.decode_compute_seconds(d, p * d + d * d / 2)

    def memory_seconds(self, prompt: ArrayLike, output: ArrayLike) -> Floats:
        """KV cache read while decoding (paper's Mem: p d + d^2 / 2 cached tokens), seconds.

        Prefix hits save none of it: a shared prefix is still read for each request.
        """
        p, d = _floats(prompt), _floats(output)
        return self.kv_read_seconds(p * d + d * d / 2)

    def density(
        self, prompt: ArrayLike, output: ArrayLike, computed_prompt: ArrayLike | None = None
    ) -> Floats:
        """Compute density (paper's rho): compute over memory seconds; infinite without memory."""
        return density(
            self.compute_seconds(prompt, output, computed_prompt),
            self.memory_seconds(prompt, output),
        )

    def prefill_seconds(self, tokens: ArrayLike, context: ArrayLike = 0) -> Floats:
        """Compute of ``tokens`` prompt tokens of one request behind ``context`` cached ones.

        2 P per token, and causal attention: token i attends to context + i + 1/2 on average.
        """
        t = _floats(tokens)
        scores = t * (_floats(context) + t / 2)
        flops = 2 * self.model.prefill_parameters * t
        flops = flops + 4 * self.model.layers * self.model.attention_width * scores
        return np.asarray(flops / self.device.peak_flops)

    def decode_compute_seconds(self, tokens: ArrayLike, kv_tokens: ArrayLike = 0) -> Floats:
        """Compute of ``tokens`` output tokens (one per running request in a step), seconds.

        ``kv_tokens``: cached tokens they attend to, summed over them.
        """
        flops = 2 * self.model.active_parameters * _floats(tokens)
        width = self.model.decode_attention_width
        flops = flops + 4 * self.model.layers * width * _floats(kv_tokens)
        return np.asarray(flops / self.device.peak_flops)

    def kv_read_seconds(self, kv_tokens: ArrayLike) -> Floats:
        """Reading the KV cache of ``kv_tokens`` tokens once, seconds."""
        stored = _floats(kv_tokens) * self.model.kv_bytes_per_token
        return np.asarray(stored / self.device.bandwidth)

    def weights_seconds(self, tokens: ArrayLike) -> Floats:
        """Reading the weights once, for a step over ``tokens`` tokens; 0 for none, seconds."""
        return np.asarray(self.model.weight_bytes_read(tokens) / self.device.bandwidth)

    def decode_step_seconds(self, running: int, kv_tokens: float) -> tuple[float, float]:
        """Compute and memory traffic (KV and weights) of a step that decodes, seconds.

        ``running``: requests that decode, one token each. ``kv_tokens``: cached tokens they
        attend to, summed over them. To the bit what `decode_compute_seconds`,
        `kv_read_seconds` and `weights_seconds` give, at a tenth of their cost for single numbers:
        every scheduling pass asks for it.
        """
        model, device = self.model, self.device
        flops = 2 * model.active_parameters * running
        flops += 4 * model.layers * model.decode_attention_width * kv_tokens
        read = kv_tokens * model.kv_bytes_per_token / device.bandwidth
        weights = float(model.weight_bytes_read(running)) if model.experts else self._dense(running)
        return flops / device.peak_flops, read + weights / device.bandwidth

    def prompt_token_seconds(self) -> float:
        """Compute of one prompt token that attends to nothing before it, seconds."""
        model = self.model
        flops = 2 * model.prefill_parameters + 4 * model.layers * model.attention_width * 0.5
        return flops / self.device.peak_flops

    def _dense(self, tokens: int) -> float:
        """`ModelSpec.weight_bytes_read` of a model without experts."""
        model = self.model
        if tokens <= 0:
            return 0.0
        per_parameter = model.weight_bytes / model.parameters
        dense = model.parameters - model.embedding_parameters - model.expert_parameters
        return per_parameter * dense


def density(compute: ArrayLike, memory: ArrayLike) -> Floats:
    """Elementwise compute / memory; infinite where memory is 0 (0 where both are)."""
    c, m = np.broadcast_arrays(_floats(compute), _floats(memory))
    ratio = np.where(c > 0, np.inf, 0.0)
    with np.errstate(over="ignore"):  # next to no memory is as good as none
        np.divide(c, m, out=ratio, where=m > 0)
    return ratio
