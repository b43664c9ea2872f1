"""Seconds of a model's kernels in one engine step, from a device's measured kernel times.

A step multiplies all its tokens with the weights of every layer at once, and the tokens that are
sampled with the output head. Attention of prompts and of decodes are kernels of their own. What is
not in the tables is counted by bytes at the data sheet's rate, a lower limit: norms, rotary
embedding and activation, and the exchange between tensor parallel ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.kernel_times import Attention, Curve, KernelTimes
from sglang.srt.blendserve.cost.model_spec import ModelSpec

_BYTES = 2
"""Bytes of an element of the operands and of the KV cache in the measurements (bfloat16)."""
_WEIGHTS_APART = 0.1
"""By how much stored weights may differ from 16 bits each: files hold some in 32 bits."""

_EXCHANGES = 2
"""All-reduces of a layer: after attention, and after the feed-forward block."""
_EXCHANGE_LATENCY = 10e-6
"""Seconds of an all-reduce of next to nothing between GPUs of one machine. Unproven."""

_TYPICAL_TOKENS = 2048.0
"""Tokens of a step with a prompt in it, whose rate a planner counts with."""
_TYPICAL_SEQUENCES, _TYPICAL_CONTEXT = 256.0, 1024.0
"""Decodes of a step and tokens that each attends to, whose rate a planner counts with."""


class LinearTimes(NamedTuple):
    """Seconds of work as if it were proportional to its amount."""

    token: float
    """Matrix products of one token in all layers."""
    logits: float
    """The output head for one token."""
    score: float
    """One pair of prompt token and token that it attends to, all layers."""
    kv_token: float
    """Decode attention over one token of KV cache, all layers."""


@dataclass(frozen=True, slots=True)
class ModelTimes:
    """Kernel times of one model on one device, or on several tensor parallel ones."""

    layers: int
    body: Curve
    """Seconds of the matrix products of all layers, over the tokens of a step."""
    head: Curve
    """Seconds of the output head, over the tokens that are sampled."""
    prefill: Attention
    """Seconds of one layer's attention of whole prompts."""
    decode: Attention
    """Seconds of one layer's attention of decodes."""
    token: float
    """Seconds a token adds in norms, rotary embedding, activation and exchange between ranks."""
    fixed: float
    """Seconds of a step's exchanges between ranks, however few its tokens."""

    @classmethod
    def of(cls, model: ModelSpec, device: DeviceSpec, kernels: KernelTimes) -> ModelTimes:
        """Return the times of ``model`` on ``device``, whose kernels take what ``kernels`` says.

        Raises ValueError where there are none: experts, latent attention, a layout of heads that
        was not measured, ranks without a known link between them.
        """
        shape, ranks = model.shape, device.ranks
        if shape is None:
            raise ValueError(
                f"{model.name} has experts or latent attention, whose kernels were not measured"
            )
        if ranks > 1 and not device.link_bandwidth:
            raise ValueError(f"no bandwidth between several {device.name} is known")
        layout = shape.layout(ranks)
        kv_bytes = 2 * shape.kv_heads * shape.head_dim * model.layers * _BYTES
        stored = model.weight_bytes / model.parameters
        if model.kv_bytes_per_token != kv_bytes or abs(stored / _BYTES - 1) > _WEIGHTS_APART:
            raise ValueError(f"{model.name} is not in 16 bits, with which kernels were measured")
        products = [kernels.product(n, k) for n, k in shape.products(ranks)]
        layer = products[0]
        for product in products[1:]:
            layer = layer.plus(product)
        moved = model.layers * shape.moved_elements(ranks) * model.dtype_bytes
        exchanged = 2 * (ranks - 1) / ranks * shape.hidden * model.dtype_bytes
        exchanges = _EXCHANGES * model.layers if ranks > 1 else 0
        exchange = exchanges * exchanged / device.link_bandwidth if exchanges else 0.0
        return cls(
            layers=model.layers,
            body=layer.times(model.layers),
            head=kernels.product(-(-shape.vocabulary // ranks), shape.hidden),
            prefill=kernels.attention("prefill", layout),
            decode=kernels.attention("decode", layout),
            token=moved / (device.bandwidth / ranks) + exchange,
            fixed=exchanges * _EXCHANGE_LATENCY,
        )

    def prefill_attention(self, tokens: float, scores: float) -> float:
        """Return the seconds of causal attention of ``tokens`` prompt tokens, ``scores`` pairs of
        a token and one that it attends to.

        They are looked up as whole prompts with as many pairs: ``tokens / L`` prompts of L tokens,
        L twice the mean context; less than one prompt as a single one with that many pairs.
        """
        if tokens <= 0 or scores <= 0:
            return 0.0
        length = 2 * scores / tokens
        prompts = tokens / length
        if prompts < 1:
            prompts, length = 1.0, sqrt(2 * scores)
        return self.layers * self.prefill(prompts, length)

    def decode_attention(self, sequences: float, kv_tokens: float) -> float:
        """Return the seconds of ``sequences`` decodes that read ``kv_tokens`` tokens together."""
        if sequences <= 0 or kv_tokens <= 0:
            return 0.0
        return self.layers * self.decode(sequences, kv_tokens / sequences)

    def least(self) -> LinearTimes:
        """Return the least seconds that a unit of work takes in any step: what bounds count."""
        lengths = (512.0, 2048.0, 8192.0)
        batches = (128.0, 256.0, 512.0)
        return LinearTimes(
            token=self.body.least() + self.token,
            logits=self.head.least(),
            score=min(self.prefill_attention(n, n * n / 2) * 2 / (n * n) for n in lengths),
            kv_token=min(
                self.decode_attention(b, b * c) / (b * c) for b in batches for c in lengths
            ),
        )

    def typical(self) -> LinearTimes:
        """Return the seconds of a unit of work in a step of usual size: what planners count."""
        length, sequences = _TYPICAL_CONTEXT, _TYPICAL_SEQUENCES
        read = sequences * _TYPICAL_CONTEXT
        return LinearTimes(
            token=self.body(_TYPICAL_TOKENS) / _TYPICAL_TOKENS + self.token,
            logits=self.head(sequences) / sequences,
            score=self.prefill_attention(length, length * length / 2) * 2 / length**2,
            kv_token=self.decode_attention(sequences, read) / read,
        )


@lru_cache(maxsize=8)
def measured_times(model: ModelSpec, device: DeviceSpec) -> ModelTimes:
    """Return the times of ``model`` by the table of ``device``.

    Raises ValueError where there is no table or it does not hold the model's shapes.
    """
    return ModelTimes.of(model, device, KernelTimes.of(device.base_name))
