"""What requests cost on the engine behind a tokenizer manager of SGLang's."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.measured_cost import measured_cost
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.runtime.compat.server_args import release
from sglang.srt.blendserve.runtime.device import this_device


def engine_cost_model(tokenizer_manager: Any) -> CostModel:
    """Return what requests cost on the engine's model and device (measures a CPU: 2 seconds).

    Raises:
        ConfigError: the model's config lacks a field that it needs.
    """
    server_args = tokenizer_manager.server_args
    fields = release.view(server_args)
    loaded = tokenizer_manager.model_config
    settings = getattr(server_args, "blendserve", None)
    name = "auto" if settings is None else settings.device
    device = this_device(fields.device, name, fields.tp_size)
    model = ModelSpec.from_config(
        loaded.hf_config.to_dict(),
        name=fields.model_path,
        kv_dtype_bytes=kv_element_bytes(fields.kv_cache_dtype, loaded.dtype.itemsize),
    )
    return measured_cost(model, device)


def kv_element_bytes(kv_cache_dtype: str, model_bytes: int) -> float:
    """Return the bytes of an element of the KV cache under ``--kv-cache-dtype``.

    ``model_bytes``: those of an element of the model as it is computed, which ``auto`` takes.
    """
    for name, size in (("fp4", 0.5), ("fp8", 1.0), ("bf16", 2.0), ("bfloat16", 2.0)):
        if name in kv_cache_dtype:
            return size
    return float(model_bytes)
