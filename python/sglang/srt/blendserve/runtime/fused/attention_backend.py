"""SGLang's FlashInfer backend with one kernel for mixed steps (see `runtime.fused.attention`).

Imported only when the backend is created: it needs FlashInfer, and so a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from flashinfer import BatchAttention
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from sglang.srt.blendserve.runtime.fused.mixed_batch import (
    FusedAttention,
    MixedBatch,
    heads_of,
    is_mixed,
)


class FusedFlashInfer(FlashInferAttnBackend):
    """SGLang's backend; steps with prompts and decodes go through `FusedAttention`."""

    def __init__(self, runner: Any, **more: Any) -> None:
        super().__init__(runner, **more)
        layer = next(m for m in runner.model.modules() if isinstance(m, RadixAttention))
        kernel = BatchAttention("NHD", runner.device)
        self._mixed = FusedAttention(kernel, heads_of(layer), runner.dtype)
        self._is_mixed = False
        # The kernel is compiled now and not in the first mixed step, and what it lacks shows now.
        self._mixed.try_out(*self.token_to_kv_pool.get_kv_buffer(layer.layer_id))

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan a step: a mixed one for the fused kernel, others as SGLang does."""
        new = forward_batch.extend_seq_lens_cpu
        cached = forward_batch.extend_prefix_lens_cpu
        self._is_mixed = (
            forward_batch.forward_mode.is_extend()
            and forward_batch.spec_info is None
            and bool(new)
            and is_mixed(new, cached)
            # The sizes of tensors on the device follow from these: they must be its own.
            and sum(new) + sum(cached) == int(forward_batch.seq_lens_cpu.sum())
        )
        if not self._is_mixed:
            super().init_forward_metadata(forward_batch)
            return
        batch = MixedBatch.of(
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            forward_batch.extend_seq_lens,
            sum(new) + sum(cached),
        )
        self._mixed.plan(batch, sum(new))

    def init_forward_metadata_out_graph(self, forward_batch: Any, *args: Any, **more: Any) -> None:
        """Plan a step whose attention is part of a CUDA graph: as SGLang does."""
        self._is_mixed = False
        super().init_forward_metadata_out_graph(forward_batch, *args, **more)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **more: Any,
    ) -> torch.Tensor:
        """Attend to the new tokens ``q`` [tokens, heads * head size] of every request."""
        if not self._is_mixed:
            stock: torch.Tensor = super().forward_extend(
                q, k, v, layer, forward_batch, save_kv_cache, **more
            )
            return stock
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        return self._mixed.run(q, *pool.get_kv_buffer(layer.layer_id))
