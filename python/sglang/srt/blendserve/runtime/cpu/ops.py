"""The parts of a model around attention, on the compiled kernels of ``sgl_kernel``.

SGLang's torch formulations spend most of a small decode step on the CPU in unblocked bf16 matrix
products and in strings of tiny element-wise ops (docs/cpu-kernels.md has the profile). The kernels
do the same arithmetic and round where SGLang rounds. Modules of a loaded model are switched one by
one, where their settings are those the kernels know; every other module stays as it is, and so
does every model that runs under another attention backend. ``BLENDSERVE_CPU_OPS=0`` switches
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.logits_processor import LogitsProcessor, should_apply_lm_head_quant_method
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.utils import apply_rotary_emb

from sgl_kernel import native
from sglang.srt.blendserve.runtime.compat import seams

SWITCH = "BLENDSERVE_CPU_OPS"
"""Environment variable: 0 leaves all of a model's modules as SGLang made them."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def accelerate(model: torch.nn.Module) -> int:
    """Switch the modules of a loaded model to compiled kernels; return how many were switched."""
    kernels, _ = native.load()
    if kernels is None or os.environ.get(SWITCH) == "0":
        return 0
    return sum(_switch(module, kernels) for module in model.modules())


def _switch(module: torch.nn.Module, kernels: ModuleType) -> bool:
    if isinstance(module, LinearBase):
        return kernels.has_linear() and _switch_linear(module, kernels)
    if isinstance(module, LogitsProcessor):
        return kernels.has_linear() and _switch_logits(module, kernels)
    stock = seams.forward_method(module)
    if getattr(stock, "__name__", "") != "forward_native":
        return False
    if type(module) is RMSNorm and _plain_norm(module):
        forward: Any = partial(_rms_norm, module, kernels.rms_norm, stock)
    elif type(module) is SiluAndMul:
        forward = partial(_silu_and_mul, kernels.silu_and_mul, stock)
    elif isinstance(module, RotaryEmbedding) and _plain_rotary(module):
        forward = partial(_rotary, module, kernels.rotary, stock)
    else:
        return False
    module._forward_method = forward
    return True


# ---- norms, activations, rotary embedding ------------------------------------------------------


def _plain_norm(norm: Any) -> bool:
    weight = norm.weight
    return (
        norm.variance_size_override is None
        and norm.override_orig_dtype is None
        and not norm.fp32_residual
        and weight.is_contiguous()
        and weight.dtype in DTYPES
    )


def _rms_norm(
    norm: Any,
    kernel: Callable[..., Any],
    stock: Callable[..., Any],
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    **others: Any,
) -> Any:
    weight = norm.weight
    fits = (
        post_residual_addition is None
        and all(other is None for other in others.values())
        and x.dim() == 2
        and x.dtype in DTYPES
        and x.stride(1) == 1
        and x.shape[1] == weight.shape[0]
        # A float32 weight times a rounded row is float32 in torch, which the kernel does not give.
        and (
            weight.dtype == x.dtype
            or (weight.dtype == torch.float32 and not norm.cast_x_before_out_mul)
        )
        and (residual is None or (residual.dtype == x.dtype and residual.is_contiguous()))
    )
    if not fits:
        return stock(x, residual, post_residual_addition, **others)
    out, total = kernel(x, residual, weight, norm.variance_epsilon, norm.cast_x_before_out_mul)
    return out if residual is None else (out, total)


def _silu_and_mul(
    kernel: Callable[..., Any], stock: Callable[..., Any], x: torch.Tensor
) -> torch.Tensor:
    fits = x.dim() == 2 and x.dtype in DTYPES and x.stride(1) == 1
    result: torch.Tensor = kernel(x) if fits else stock(x)
    return result


def _plain_rotary(rotary: Any) -> bool:
    return (
        type(rotary).forward_native is RotaryEmbedding.forward_native
        and rotary._apply_rotary_emb_wrapped is apply_rotary_emb
        and not hasattr(rotary, "sin_cos_cache")
        and rotary.rotary_dim <= min(rotary.head_size, 512)
    )


def _rotary(
    rotary: Any,
    kernel: Callable[..., Any],
    stock: Callable[..., Any],
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None = None,
    fused_set_kv_buffer_arg: Any = None,
) -> Any:
    cache = rotary.cos_sin_cache
    fits = (
        offsets is None
        and fused_set_kv_buffer_arg is None
        and positions.dim() == 1
        and positions.dtype == torch.int64
        and query.dim() == key.dim() == 2
        and query.dtype == key.dtype
        and query.dtype in DTYPES
        and query.stride(1) == key.stride(1) == 1
        and cache.dtype in (query.dtype, torch.float32)
    )
    if not fits:
        return stock(positions, query, key, offsets, fused_set_kv_buffer_arg)
    return kernel(positions, query, key, rotary.head_size, cache, rotary.is_neox_style)


# ---- linear layers -----------------------------------------------------------------------------


class CpuLinearMethod(UnquantizedLinearMethod):
    """SGLang's unquantised linear layer with bf16 products that read each weight once, in order."""

    def __init__(self, kernel: Callable[..., torch.Tensor]) -> None:
        self._kernel = kernel

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``x W^T + bias``."""
        weight = layer.weight
        if not _fits_linear(x, weight) or (bias is not None and bias.dtype != torch.bfloat16):
            result: torch.Tensor = super().apply(layer, x, bias)
            return result
        return self._kernel(x, weight, bias)


def _fits_linear(x: torch.Tensor, weight: Any) -> bool:
    return (
        x.dtype == torch.bfloat16
        and x.dim() == 2
        and x.stride(1) == 1
        and weight.dtype == torch.bfloat16
        and weight.is_contiguous()
    )


def _switch_linear(layer: Any, kernels: ModuleType) -> bool:
    if type(layer.quant_method) is not UnquantizedLinearMethod:
        return False
    if layer.weight.dtype != torch.bfloat16:
        return False
    layer.quant_method = CpuLinearMethod(kernels.linear)
    return True


def _switch_logits(processor: Any, kernels: ModuleType) -> bool:
    stock = processor._compute_lm_head
    if processor.use_fp32_lm_head or processor.rl_on_policy_target is not None:
        return False

    def compute(
        hidden: torch.Tensor,
        lm_head: Any,
        embedding_bias: torch.Tensor | None = None,
        **buffers: Any,
    ) -> Any:
        # A buffer for the result may be left unused, as SGLang does without a GPU.
        quant_method = getattr(lm_head, "quant_method", None)
        if (
            hasattr(lm_head, "set_lora")
            or should_apply_lm_head_quant_method(lm_head, quant_method)
            or not hasattr(lm_head, "weight")
            or not _fits_linear(hidden, lm_head.weight)
        ):
            return stock(hidden, lm_head, embedding_bias, **buffers)
        return kernels.linear(hidden, lm_head.weight, None)

    processor._compute_lm_head = compute
    return True
