"""The module `sgl_kernel` that SGLang 0.5.17 imports, for machines without a GPU.

Every name either does its work on CPU tensors or raises `NotImplementedError` saying what the CPU
lacks; nothing is a silent stub. Submodules load on first use, so ``import sgl_kernel`` costs a few
microseconds and no torch.

`torch.ops.sgl_kernel.convert_weight_packed` must never be registered here: SGLang reads its
presence as "AMX build" and would then call ops that only Intel's build has.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "assign_draft_cache_locs_contiguous_cpu": "kv_slots",
    "assign_extend_cache_locs_cpu": "kv_slots",
    "assign_req_to_token_pool_cpu": "kv_slots",
    "copy_all_layer_kv_cache_cpu": "kv_slots",
    "paged_attention": "attention",
    "build_draft_decode_metadata_cpu": "speculative",
    "build_tree_kernel_efficient_cpu": "speculative",
    "fill_accept_out_cache_loc_cpu": "speculative",
    "fill_bonus_tokens_cpu": "speculative",
    "reconstruct_indices_from_tree_mask": "speculative",
    "rotate_input_ids_cpu": "speculative",
    "verify_tree_greedy_cpu": "speculative",
}
"""Public function -> submodule that defines it."""

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(
            f"sgl_kernel.{name} is not available on the CPU: this is the CPU build from "
            "sglang-blendserve-kernel; on an NVIDIA GPU install sglang-kernel instead"
        )
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
