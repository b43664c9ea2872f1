"""The attention backend ``blend_flashinfer``: SGLang's ``flashinfer``, fused in mixed steps.

A mixed step computes prompts and decodes in one forward. SGLang's own backend runs two attention
kernels there and merges what they return: one over the step's new tokens, one over the cached
ones. Here both are one launch of FlashInfer's ``BatchAttention`` without a merge: its blocks get
tiles of prompts and of decodes by what they cost, so that neither kind leaves part of the GPU idle.
It is not POD attention (Kamath et al., ASPLOS '25), in which tiles of both kinds share an SM at the
same time. All other steps are SGLang's own.

The choice is the user's (``--prefill-attention-backend blend_flashinfer``). What it gains was not
measured on a GPU.
"""

from __future__ import annotations

from typing import Any

BACKEND = "blend_flashinfer"
"""Name in SGLang's attention registry."""

STOCK = "flashinfer"
"""SGLang's own, for what `BACKEND` does not support."""

HEAD_SIZES = (64, 128, 256)
"""Head sizes of FlashInfer's kernel that this project has looked at."""

CAPABILITIES = ((8, 0), (9, 0), (10, 0))
"""Of the GPUs whose SMs have the shared memory that two blocks of the kernel take."""

WORKSPACE_BYTES = 384 << 20
"""What FlashInfer sets aside for partial results; its plan does not start without room for them."""

_PARTS_OF_SM = 4 * 2 * (128 + 16)
"""Rows of partial results that the plan makes room for, for each SM."""

_MOST_ELEMENTS = 1 << 32
"""Keys of one layer from which on the kernel's offsets, of 32 bits, would wrap."""


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
    """Return what a loaded model, its GPU or a setting needs and the kernel lacks ("" if
    nothing)."""
    import torch
    from sglang.srt.layers.radix_attention import RadixAttention

    from sglang.srt.blendserve.runtime.fused.mixed_batch import heads_of

    args = runner.server_args
    if not runner.device.startswith("cuda"):
        return f"device {runner.device}"
    capability = torch.cuda.get_device_capability()
    if capability not in CAPABILITIES:
        return "a GPU of compute capability {}.{}".format(*capability)
    if args.enable_pdmux:
        return "lanes on parts of the SMs (--blendserve-overlap, --enable-pdmux)"
    if args.enable_deterministic_inference:
        return "--enable-deterministic-inference"
    if args.speculative_algorithm is not None:
        return f"speculative decoding ({args.speculative_algorithm})"
    if runner.use_mla_backend:
        return "multi-head latent attention (MLA)"
    if runner.model_config.is_encoder_decoder:
        return "encoder-decoder models"
    if runner.dtype not in (torch.float16, torch.bfloat16):
        return f"a model of {runner.dtype}"
    if runner.kv_cache_dtype != runner.dtype:
        return f"a KV cache of {runner.kv_cache_dtype} under a model of {runner.dtype}"
    layers = [m for m in runner.model.modules() if isinstance(m, RadixAttention)]
    if not layers:
        return "a model without attention layers"
    if len({heads_of(layer) for layer in layers}) > 1:
        return "layers whose heads differ"
    if runner.token_to_kv_pool.get_key_buffer(layers[0].layer_id).numel() >= _MOST_ELEMENTS:
        return "a KV cache of 8 GiB of keys a layer"
    return next((reason for layer in layers if (reason := _unsupported_layer(layer))), "")


def _unsupported_layer(layer: Any) -> str:
    import torch
    from sglang.srt.layers.radix_attention import AttentionType

    if layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
        return "attention that is not causal"
    if layer.sliding_window_size > -1:
        return f"sliding-window attention (a window of {layer.sliding_window_size})"
    if layer.logit_cap > 0:
        return f"a logit soft-cap ({layer.logit_cap})"
    if layer.v_head_dim != layer.head_dim or layer.head_dim not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        return f"heads of {layer.head_dim} and {layer.v_head_dim} (both one of {sizes})"
    sms = torch.cuda.get_device_properties().multi_processor_count
    most = WORKSPACE_BYTES // workspace_bytes(sms, 1, layer.head_dim)
    if layer.tp_k_head_num > most:
        return f"{layer.tp_k_head_num} KV heads on one GPU (at most {most} of this size)"
    return ""


def workspace_bytes(sms: int, kv_heads: int, head_size: int) -> int:
    """Bytes that the kernel's plan sets aside for partial results, whatever the batch.

    Of each row an output of two bytes for each of ``head_size``, and a float32 sum.
    """
    return _PARTS_OF_SM * sms * kv_heads * (2 * head_size + 4)
