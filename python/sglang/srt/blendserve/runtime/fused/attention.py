"""The attention backend ``blend_flashinfer``: SGLang's ``flashinfer``, fused in mixed steps.

A mixed step computes prompts and decodes in one forward. SGLang's own backend runs two attention
kernels there and merges what they return: one over the step's new tokens, one over the cached
ones. The first is bound by compute and the second by memory, one after the other. Here both are
one persistent kernel, FlashInfer's ``BatchAttention``, whose blocks take work of either kind, so
that they overlap inside it (the idea of POD attention, Kamath et al., ASPLOS '25). All other steps
are SGLang's own.

The choice is the user's (``--attention-backend blend_flashinfer``). What it gains was not measured
on a GPU.
"""

from __future__ import annotations

from typing import Any

BACKEND = "blend_flashinfer"
"""Name in SGLang's attention registry."""

STOCK = "flashinfer"
"""SGLang's own, for what `BACKEND` does not support."""

MAX_HEAD_SIZE = 256
"""Of FlashInfer's kernel."""


def register_fused_attention() -> None:
    """Register `BACKEND`; called by the plugin in every process."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    if BACKEND not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([BACKEND])
    register_attention_backend(BACKEND)(create_backend)


def create_backend(runner: Any) -> Any:
    """Return the backend for a loaded model; called by SGLang with its ``ModelRunner``.

    Raises:
        ValueError: the model or a setting needs what the kernel does not have; names the way out.
    """
    if reason := unsupported(runner):
        raise ValueError(
            f"--attention-backend {BACKEND} does not support {reason}; "
            f"use --attention-backend {STOCK}"
        )
    from sglang.srt.blendserve.runtime.fused.attention_backend import FusedFlashInfer

    return FusedFlashInfer(runner, init_new_workspace=runner.init_new_workspace)


def unsupported(runner: Any) -> str:
    """Return what a loaded model needs and the kernel lacks ("" if nothing)."""
    from sglang.srt.layers.radix_attention import RadixAttention

    from sglang.srt.blendserve.runtime.fused.mixed_batch import heads_of

    if not runner.device.startswith("cuda"):
        return f"device {runner.device}"
    if runner.use_mla_backend:
        return "multi-head latent attention (MLA)"
    if runner.model_config.is_encoder_decoder:
        return "encoder-decoder models"
    if runner.server_args.speculative_algorithm is not None:
        return f"speculative decoding ({runner.server_args.speculative_algorithm})"
    if runner.kv_cache_dtype != runner.dtype:
        return f"a KV cache of {runner.kv_cache_dtype} under a model of {runner.dtype}"
    layers = [m for m in runner.model.modules() if isinstance(m, RadixAttention)]
    if not layers:
        return "a model without attention layers"
    if len({heads_of(layer) for layer in layers}) > 1:
        return "layers whose heads differ"
    return next((reason for layer in layers if (reason := _unsupported_layer(layer))), "")


def _unsupported_layer(layer: Any) -> str:
    from sglang.srt.layers.radix_attention import AttentionType

    if layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
        return "attention that is not causal"
    if layer.sliding_window_size > -1:
        return f"sliding-window attention (a window of {layer.sliding_window_size})"
    if layer.logit_cap > 0:
        return f"a logit soft-cap ({layer.logit_cap})"
    if layer.v_head_dim != layer.head_dim or layer.head_dim > MAX_HEAD_SIZE:
        return f"heads of {layer.head_dim} and {layer.v_head_dim} (at most {MAX_HEAD_SIZE}, alike)"
    return ""
