"""Reads a Hugging Face ``config.json`` and counts a decoder's weights from it.

Knows the layouts whose fields carry the common names: dense decoders with multi-head, grouped- or
multi-query attention (llama, mistral, qwen2, qwen3, gemma, ...), multi-head latent attention
(deepseek v2 and v3), and routed experts (mixtral, qwen2_moe, qwen3_moe, deepseek, gpt_oss, ...).
Language models inside a larger config (``text_config``) are found there. Vision towers and
multi-token-prediction layers are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang.srt.blendserve.cost.layer_shape import HeadLayout, LayerShape

_DTYPE_BYTES = {"float64": 8, "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
"""Bytes of one element by the names that configs use (torch's)."""
_UNGATED = frozenset({"phi", "starcoder2", "gpt_neox", "nemotron"})
"""Model types whose feed-forward block has two matrices instead of three (gate, up, down)."""
_QKV_BIAS = frozenset({"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"})
"""Model types whose query, key and value projections always have a bias, the output none."""
_TIED = ("gemma", "cohere")
"""Model types (by prefix) that tie the embeddings when the config does not say."""


class ConfigError(ValueError):
    """A config.json lacks a field or holds a value that cannot be right; names file and field."""


class ConfigReader:
    """Typed look-ups in a config mapping; ``where`` (a file) goes into every error."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        nested = config.get("text_config")
        self._config = {**config, **nested} if isinstance(nested, Mapping) else dict(config)
        self.where = where

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of ``names`` that is present, as a positive integer (zero allowed if default).

        Raises ConfigError if none is present and there is no default, or if it is no such number.
        """
        for name in names:
            value = self._config.get(name)
            if value is None:
                continue
            least = 0 if default is not None else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"{self.where}: field {name!r} must be a whole number of at "
                    f"least {least}, got {value!r}"
                )
            return value
        if default is None:
            wanted = " or ".join(repr(name) for name in names)
            raise ConfigError(
                f"{self.where}: field {wanted} is missing; it is needed to count the "
                "model's weights and KV cache bytes"
            )
        return default

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean field; ``default`` where it is absent or null."""
        value = self._config.get(name)
        return default if value is None else bool(value)

    def text(self, name: str, default: str = "") -> str:
        """A string field; ``default`` where it is absent or null."""
        value = self._config.get(name)
        return default if value is None else str(value)

    def raw(self, name: str) -> Any:
        """The field as it stands; None where it is absent."""
        return self._config.get(name)

    def dtype_bytes(self) -> int:
        """Bytes of one element of the model's dtype; 2 where the config does not say."""
        name = (self.text("dtype") or self.text("torch_dtype", "bfloat16")).removeprefix("torch.")
        if name not in _DTYPE_BYTES:
            raise ConfigError(
                f"{self.where}: unknown dtype {name!r}; known: {', '.join(_DTYPE_BYTES)}"
            )
        return _DTYPE_BYTES[name]

    def weight_bits(self) -> float:
        """Bits of one weight: from ``quantization_config`` where that says so, else the dtype's.

        An unknown quantization counts as none, which is an upper bound.
        """
        quantization = self.raw("quantization_config")
        if isinstance(quantization, Mapping):
            bits = quantization.get("bits")
            if isinstance(bits, int | float) and not isinstance(bits, bool) and bits > 0:
                return float(bits)
            if quantization.get("load_in_4bit"):
                return 4.0
            if quantization.get("load_in_8bit") or quantization.get("quant_method") == "fp8":
                return 8.0
            if quantization.get("quant_method") == "mxfp4":
                return 4.25
        return 8.0 * self.dtype_bytes()


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention: its weights, and per cached token and per score what it costs."""

    parameters: int
    prefill_width: float
    """Mean width of the score and value products in prefill (query heads x head dim)."""
    decode_width: float
    """Mean width of the score and value products in decode; wider for latent attention, which
    decodes in the compressed space."""
    kv_elements: int
    """Elements in the KV cache for one token."""


def read_shape(config: ConfigReader) -> LayerShape | None:
    """Sizes of one layer of a model without experts; None with latent attention."""
    if config.raw("kv_lora_rank"):
        return None
    heads, kv_heads, head_dim = _heads(config)
    return LayerShape(
        hidden=config.integer("hidden_size", "n_embd", "d_model"),
        intermediate=config.integer("intermediate_size", "n_inner"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=config.integer("vocab_size"),
        gated=config.text("model_type") not in _UNGATED,
    )


def _heads(config: ConfigReader) -> HeadLayout:
    hidden = config.integer("hidden_size", "n_embd", "d_model")
    heads = config.integer("num_attention_heads", "n_head")
    if config.raw("head_dim") is None and hidden % heads:
        raise ConfigError(
            f"{config.where}: field 'head_dim' is missing and hidden size {hidden} "
            f"is not a multiple of {heads} attention heads"
        )
    kv_heads = (
        1 if config.flag("multi_query") else config.integer("num_key_value_heads", default=heads)
    )
    return HeadLayout(heads, kv_heads, config.integer("head_dim", default=hidden // heads))


def read_attention(config: ConfigReader) -> Attention:
    """Attention of one layer, from the fields of ``config``."""
    hidden = config.integer("hidden_size", "n_embd", "d_model")
    if config.raw("kv_lora_rank"):
        return _latent_attention(config, hidden, config.integer("num_attention_heads", "n_head"))
    heads, kv_heads, head_dim = _heads(config)
    kind = config.text("model_type")
    parameters = 2 * hidden * (heads + kv_heads) * head_dim
    if config.flag("attention_bias"):
        parameters += (heads + 2 * kv_heads) * head_dim + hidden
    elif kind in _QKV_BIAS and config.flag("qkv_bias", default=True):
        parameters += (heads + 2 * kv_heads) * head_dim
    if kind.startswith(("qwen3", "gemma3")):  # these normalise each head's query and key
        parameters += 2 * head_dim
    width = float(heads * head_dim)
    return Attention(parameters, width, width, 2 * kv_heads * head_dim)


def _latent_attention(config: ConfigReader, hidden: int, heads: int) -> Attention:
    """Multi-head latent attention: one compressed vector and one rotary key per cached token."""
    rank = config.integer("kv_lora_rank")
    rotary = config.integer("qk_rope_head_dim")
    plain = config.integer("qk_nope_head_dim")
    value = config.integer("v_head_dim")
    query_rank = config.integer("q_lora_rank", default=0)
    query_width = heads * (plain + rotary)
    query = hidden * query_width
    if query_rank:
        query = hidden * query_rank + query_rank + query_rank * query_width
    key_value = hidden * (rank + rotary) + rank + rank * heads * (plain + value)
    return Attention(
        parameters=query + key_value + heads * value * hidden,
        prefill_width=heads * (plain + rotary + value) / 2,
        decode_width=heads * (2 * rank + rotary) / 2,
        kv_elements=rank + rotary,
    )


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Feed-forward weights of all layers together."""

    dense: int
    """Weights every token is multiplied with: dense layers, shared experts, routers."""
    routed: int
    """Weights of all routed experts."""
    experts: int
    """Routed experts in a layer; 0 in a dense model."""
    experts_per_token: int


def read_feed_forward(config: ConfigReader) -> FeedForward:
    """Feed-forward weights of all layers, from the fields of ``config``."""
    hidden = config.integer("hidden_size", "n_embd", "d_model")
    layers = config.integer("num_hidden_layers", "n_layer")
    matrices = 2 if config.text("model_type") in _UNGATED else 3
    experts = config.integer("num_local_experts", "n_routed_experts", "num_experts", default=0)
    sparse = _sparse_layers(config, layers) if experts > 1 else 0
    dense = 0
    if sparse < layers:
        inner = config.integer("intermediate_size", "n_inner")
        bias = 2 * inner + hidden if config.flag("mlp_bias") else 0
        dense = (layers - sparse) * (matrices * hidden * inner + bias)
    if sparse == 0:
        return FeedForward(dense, 0, 0, 0)
    used = config.integer("num_experts_per_tok", "num_experts_per_token")
    if used > experts:
        raise ConfigError(f"{config.where}: {used} experts per token, but only {experts} experts")
    inner = config.integer("moe_intermediate_size", "intermediate_size")
    shared = matrices * hidden * inner * config.integer("n_shared_experts", default=0)
    shared_inner = config.integer("shared_expert_intermediate_size", default=0)
    if shared_inner:
        shared += matrices * hidden * shared_inner + hidden  # and a gate of its own
    router = hidden * experts
    return FeedForward(
        dense=dense + sparse * (shared + router),
        routed=sparse * experts * matrices * hidden * inner,
        experts=experts,
        experts_per_token=used,
    )


def _sparse_layers(config: ConfigReader, layers: int) -> int:
    """How many layers route their tokens to experts."""
    dense_first = config.integer("first_k_dense_replace", default=0)
    every = config.integer("moe_layer_freq", default=1) or 1
    step = config.integer("decoder_sparse_step", default=1) or 1
    dense_only = set(config.raw("mlp_only_layers") or ())
    return sum(
        layer >= dense_first
        and layer % every == 0
        and (layer + 1) % step == 0
        and layer not in dense_only
        for layer in range(layers)
    )


def ties_embeddings(config: ConfigReader) -> bool:
    """Whether input embedding and output head are one matrix."""
    default = config.text("model_type").startswith(_TIED)
    return config.flag("tie_word_embeddings", default=default)
