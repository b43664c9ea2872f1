"""SGLang's attention interface on top of ``sgl_kernel.attention`` (see `runtime.cpu.attention`).

Imported only when the backend is created, because its base class is one of SGLang's heavy modules.
"""

from __future__ import annotations

from typing import Any

import torch
from sgl_kernel.attention import paged_attention
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from sgl_kernel import native


class BlendCpuAttention(AttentionBackend):
    """Writes new keys and values into the pool, then attends to it, for decode, extend and mixed
    batches alike: they differ in the number of new tokens per sequence only."""

    def __init__(self, runner: Any) -> None:
        super().__init__()
        native.warn_if_absent()
        self._pool = runner.token_to_kv_pool
        self._req_to_token = runner.req_to_token_pool.req_to_token
        self._requests = self._seq_lens = self._new_lens = torch.empty(0, dtype=torch.int64)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Take a batch's request rows and lengths, once for all layers."""
        mode = forward_batch.forward_mode
        self._requests = forward_batch.req_pool_indices.to(torch.int64)
        self._seq_lens = forward_batch.seq_lens.to(torch.int64)
        if mode.is_decode():
            self._new_lens = torch.ones_like(self._seq_lens)
        else:
            self._new_lens = forward_batch.extend_seq_lens.to(torch.int64)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend to the new tokens ``q`` [tokens, heads * k size] of every sequence.

        Raises:
            NotImplementedError: the model passes an argument that this backend does not know.
        """
        if given := [name for name, value in kwargs.items() if value is not None]:
            raise NotImplementedError(
                f"--attention-backend blend_cpu does not support {', '.join(given)}, which layer "
                f"{layer.layer_id} asks for; use --attention-backend torch_native"
            )
        if save_kv_cache and k is not None and v is not None:
            self._pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        out = paged_attention(
            q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            self._pool.get_key_buffer(layer.layer_id),
            self._pool.get_value_buffer(layer.layer_id),
            self._req_to_token,
            self._requests,
            self._seq_lens,
            self._new_lens,
            layer.scaling,
            layer.attn_type != AttentionType.ENCODER_ONLY,
        )
        return out.flatten(1)

    forward_decode = forward_extend

    def support_triton(self) -> bool:
        """No: there is no Triton for this device."""
        return False
