"""The attention backend ``blend_cpu``: SGLang's paged KV pool and the kernels of ``sgl_kernel``.

SGLang's own CPU backend, ``torch_native``, loops over the sequences of a batch in Python, so each
sequence adds its own cost to a step and batching brings nothing. Here one call per layer does the
whole batch. `register_cpu_attention` puts the backend into SGLang's registry, where any machine
may choose it by name (``--attention-backend blend_cpu``), and makes it the default for
``--device cpu``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.settings import POLICY

if TYPE_CHECKING:
    import torch

BACKEND = "blend_cpu"
"""Name in SGLang's attention registry."""

FALLBACK = "torch_native"
"""SGLang's own CPU backend, for what `BACKEND` does not support."""


def register_cpu_attention() -> None:
    """Register `BACKEND` and its hooks; called by the plugin in every process."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    if BACKEND not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([BACKEND])
    register_attention_backend(BACKEND)(create_backend)
    seams.register_cpu_choice(_choose_default)
    for target, hook in (
        ("utils.common.support_triton", _support_triton),
        ("mem_cache.allocation.get_last_loc", _get_last_loc),
    ):
        HookRegistry.register(f"sglang.srt.{target}", hook, HookType.AROUND)


def default_cpu_backend(model_config: Any) -> str:
    """Return the attention backend to use on a CPU for a model (SGLang's ``ModelConfig``)."""
    from sglang.srt.configs.model_config import AttentionArch

    special = (
        model_config.attention_arch != AttentionArch.MHA
        or model_config.is_encoder_decoder
        or model_config.is_hybrid_swa
        or model_config.has_attention_sinks
        or model_config.attention_chunk_size
        or getattr(model_config.hf_text_config, "attn_logit_softcapping", None)
    )
    return FALLBACK if special else BACKEND


def create_backend(runner: Any) -> Any:
    """Return the backend for a loaded model; called by SGLang with its ``ModelRunner``.

    Also switches the model's linear layers, norms, activations and rotary embeddings to the
    compiled kernels (see `runtime.cpu.ops`).

    Raises:
        ValueError: the model or a setting needs what the kernels do not have; names the way out.
    """
    from sglang.srt.blendserve.runtime.cpu import ops as cpu_ops
    from sglang.srt.blendserve.runtime.cpu.attention_backend import BlendCpuAttention

    if reason := unsupported(runner):
        raise ValueError(
            f"--attention-backend {BACKEND} does not support {reason}; "
            f"use --attention-backend {FALLBACK}"
        )
    backend = BlendCpuAttention(runner)
    cpu_ops.accelerate(runner.model)
    return backend


def unsupported(runner: Any) -> str:
    """Return what a loaded model needs and the kernels lack ("" if nothing)."""
    import torch
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    args = runner.server_args
    if runner.device != "cpu":
        return f"device {runner.device}"
    if runner.use_mla_backend:
        return "multi-head latent attention (MLA)"
    if runner.model_config.is_encoder_decoder:
        return "encoder-decoder models"
    if args.speculative_algorithm is not None:
        return f"speculative decoding ({args.speculative_algorithm})"
    if args.enable_torch_compile:
        return "--enable-torch-compile"
    pool = runner.token_to_kv_pool
    if type(pool) is not MHATokenToKVPool or pool.kv_cache_layout != "nhd":
        layout = getattr(pool, "kv_cache_layout", "")
        return f"the KV pool {type(pool).__name__} {layout}".rstrip()
    if pool.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"a KV cache of {pool.dtype}"
    if pool.dtype != runner.dtype:
        return f"a KV cache of {pool.dtype} under a model of {runner.dtype}"
    layers = (m for m in runner.model.modules() if isinstance(m, RadixAttention))
    return next((reason for layer in layers if (reason := _unsupported_layer(layer))), "")


def _unsupported_layer(layer: Any) -> str:
    from sgl_kernel.attention import MAX_HEAD_SIZE

    if layer.is_cross_attention:
        return "cross-attention"
    if layer.sliding_window_size > -1:
        return f"sliding-window attention (a window of {layer.sliding_window_size})"
    if layer.logit_cap > 0:
        return f"a logit soft-cap ({layer.logit_cap})"
    if layer.use_irope or layer.xai_temperature_len > 0:
        return "attention scores that depend on the position (iRoPE, temperature)"
    size = max(layer.qk_head_dim, layer.v_head_dim)
    return f"a head size of {size} (at most {MAX_HEAD_SIZE})" if size > MAX_HEAD_SIZE else ""


def _choose_default(server_args: Any, model_config: Callable[[], Any]) -> dict[str, Any]:
    """Before SGLang's default for the CPU: AMX, with a fall back to torch_native."""
    if server_args.device != "cpu" or server_args.attention_backend is not None:
        return {}
    plain = server_args.kv_cache_dtype == "auto"  # the kernels read a cache of the model's dtype
    chosen: dict[str, Any] = {
        "attention_backend": default_cpu_backend(model_config()) if plain else FALLBACK
    }
    policy_decides = (
        server_args.schedule_policy == POLICY and server_args.blendserve.mixed_chunk == "auto"
    )
    if chosen["attention_backend"] == FALLBACK and policy_decides:
        # Its mixed step computes the whole context of every decode again.
        chosen["enable_mixed_chunk"] = False
    return chosen


def _support_triton(original: Callable[[str], bool], backend: str) -> bool:
    """Whether SGLang may use Triton kernels beside a backend: it asks by the backend's name."""
    return backend != BACKEND and original(backend)


def _get_last_loc(original: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
    """The slot before each sequence's new tokens (for pages): in torch instead of Triton."""
    from sglang.srt.mem_cache.allocation import get_last_loc_torch
    from sglang.srt.runtime_context import get_exec

    if get_exec().kernel.attention_backend == BACKEND:
        result: torch.Tensor = get_last_loc_torch(*args)
        return result
    return original(*args)
