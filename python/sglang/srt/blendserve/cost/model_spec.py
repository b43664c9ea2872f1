"""ModelSpec: what the cost model knows of a model. Sizes only; no weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.cost.layer_shape import LayerShape
from sglang.srt.blendserve.cost.model_config import (
    ConfigError,
    ConfigReader,
    read_attention,
    read_feed_forward,
    read_shape,
    ties_embeddings,
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes of one decoder-only language model, over all layers and all devices together."""

    name: str
    layers: int
    attention_width: float
    """Query heads x head dim; for latent attention the mean of score and value widths."""
    decode_attention_width: float
    """Width of attention in decode: that of prefill, or larger with latent attention, which then
    works in the compressed space."""
    parameters: int
    embedding_parameters: int
    """Weights that are looked up and never multiplied (0 with tied embeddings)."""
    head_parameters: int
    """Output head: multiplied for sampled tokens only, not for every prompt token."""
    expert_parameters: int
    """Weights of all routed experts; 0 in a dense model."""
    experts: int
    experts_per_token: int
    kv_bytes_per_token: float
    weight_bytes: float
    context_length: int
    dtype_bytes: int
    shape: LayerShape | None = None
    """One layer's sizes; None where layers differ or have experts or latent attention."""

    def __post_init__(self) -> None:
        assert self.layers > 0, f"layers must be positive, got {self.layers}"
        assert self.kv_bytes_per_token > 0, "kv_bytes_per_token must be positive"
        assert 0 <= self.experts_per_token <= self.experts, "more experts per token than experts"

    @property
    def active_parameters(self) -> float:
        """Weights one output token is multiplied with (routed experts: those it is sent to)."""
        unused = 0.0
        if self.experts:
            unused = self.expert_parameters * (1 - self.experts_per_token / self.experts)
        return self.parameters - self.embedding_parameters - unused

    @property
    def prefill_parameters(self) -> float:
        """Weights one prompt token is multiplied with: the active ones without the output head."""
        return self.active_parameters - self.head_parameters

    def weight_bytes_read(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Bytes of weights read by a step over ``tokens`` tokens (scalar or any shape; bytes).

        Every step reads the dense part once. Of E routed experts, k per token, it touches the
        expected share 1 - (1 - k/E)^tokens, tokens choosing independently. The input embedding
        is looked up row by row and left out. No tokens, no step: 0 bytes.
        """
        count = np.asarray(tokens, dtype=np.float64)
        per_parameter = self.weight_bytes / self.parameters
        dense = self.parameters - self.embedding_parameters - self.expert_parameters
        touched = np.zeros_like(count)
        if self.experts:
            missed = (1 - self.experts_per_token / self.experts) ** count
            touched = self.expert_parameters * (1 - missed)
        return np.where(count > 0, per_parameter * (dense + touched), 0.0)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        name: str,
        kv_dtype_bytes: float | None = None,
        weight_bytes: float | None = None,
        where: str | None = None,
    ) -> ModelSpec:
        """Sizes from the mapping of a Hugging Face ``config.json``.

        ``kv_dtype_bytes``: bytes of a KV cache element where it is not the model's dtype (1 for
        an fp8 cache). ``weight_bytes``: size of the weights where it is known; else counted.
        ``where``: what errors call the config (default: ``name``). Sliding windows are taken as
        full attention, an upper bound. Raises ConfigError naming the field that is missing.
        """
        reader = ConfigReader(config, where or name)
        hidden = reader.integer("hidden_size", "n_embd", "d_model")
        layers = reader.integer("num_hidden_layers", "n_layer")
        attention = read_attention(reader)
        feed_forward = read_feed_forward(reader)
        vocabulary = hidden * reader.integer("vocab_size")
        tied = ties_embeddings(reader)
        norms_per_layer = 4 if reader.text("model_type").startswith(("gemma2", "gemma3")) else 2
        parameters = (
            layers * (attention.parameters + norms_per_layer * hidden)
            + feed_forward.dense
            + feed_forward.routed
            + hidden
            + vocabulary * (1 if tied else 2)
        )
        dtype_bytes = reader.dtype_bytes()
        if weight_bytes is None:
            linear = parameters - vocabulary * (1 if tied else 2)
            # Quantisation leaves embeddings and head in the model's dtype.
            weight_bytes = linear * reader.weight_bits() / 8 + (parameters - linear) * dtype_bytes
        return cls(
            name=name,
            layers=layers,
            attention_width=attention.prefill_width,
            decode_attention_width=attention.decode_width,
            parameters=parameters,
            embedding_parameters=0 if tied else vocabulary,
            head_parameters=vocabulary,
            expert_parameters=feed_forward.routed,
            experts=feed_forward.experts,
            experts_per_token=feed_forward.experts_per_token,
            kv_bytes_per_token=attention.kv_elements * layers * (kv_dtype_bytes or dtype_bytes),
            weight_bytes=float(weight_bytes),
            context_length=reader.integer(
                "max_position_embeddings", "n_positions", "seq_length", default=0
            ),
            dtype_bytes=dtype_bytes,
            shape=None if feed_forward.experts else read_shape(reader),
        )

    @classmethod
    def from_folder(cls, folder: str | Path, *, kv_dtype_bytes: float | None = None) -> ModelSpec:
        """Sizes of the model in a Hugging Face folder; its weight files give ``weight_bytes``.

        Raises ConfigError if ``config.json`` is missing, is no JSON object, or lacks a field.
        """
        folder = Path(folder)
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; a model folder has one") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(config, Mapping):
            raise ConfigError(f"{path}: must hold a JSON object, got {type(config).__name__}")
        stored = _stored_bytes(folder)
        return cls.from_config(
            config,
            name=folder.resolve().name,
            kv_dtype_bytes=kv_dtype_bytes,
            weight_bytes=float(stored) if stored else None,
            where=str(path),
        )

    @classmethod
    def named(cls, name: str, *, kv_dtype_bytes: float | None = None) -> ModelSpec:
        """A model this package has the config of, by name (case does not matter).

        Raises ValueError listing the known names.
        """
        for known in known_models():
            if known.lower() == name.lower():
                text = files(__package__).joinpath("models", f"{known}.json").read_text("utf-8")
                return cls.from_config(json.loads(text), name=known, kv_dtype_bytes=kv_dtype_bytes)
        raise ValueError(f"unknown model {name!r}; known: {', '.join(known_models())}")


def known_models() -> tuple[str, ...]:
    """Names that `ModelSpec.named` takes, sorted."""
    entries = files(__package__).joinpath("models").iterdir()
    return tuple(sorted(e.name.removesuffix(".json") for e in entries if e.name.endswith(".json")))


def _stored_bytes(folder: Path) -> int:
    """Bytes of the safetensors weights in ``folder``; 0 where there are none.

    Only ``model*`` files: some folders hold the weights a second time under another name.
    """
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
