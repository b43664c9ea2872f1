"""FlashInfer's ``BatchAttention`` in plain torch, by its documentation."""

from __future__ import annotations

from typing import Any

import torch


class BatchAttention:
    """Takes the arguments of the real one, by the same names and in the same order."""

    def __init__(self, kv_layout: str = "NHD", device: str = "cuda") -> None:
        assert kv_layout == "NHD"
        self.planned: dict[str, Any] = {}

    def plan(
        self,
        qo_indptr: torch.Tensor,
        kv_indptr: torch.Tensor,
        kv_indices: torch.Tensor,
        kv_len_arr: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        page_size: int,
        causal: bool = False,
        sm_scale: float | None = None,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.bfloat16,
        kv_data_type: torch.dtype = torch.bfloat16,
        use_profiler: bool = False,
    ) -> None:
        for tensor in (qo_indptr, kv_indptr, kv_indices, kv_len_arr):
            assert tensor.dtype == torch.int32
        requests = kv_len_arr.numel()
        assert qo_indptr.shape == kv_indptr.shape == (requests + 1,)
        assert kv_indices.shape == (int(kv_indptr[-1]),)
        assert page_size == 1
        assert causal
        self.planned = {
            "queries": qo_indptr.tolist(),
            "slots": [
                kv_indices[kv_indptr[n] : kv_indptr[n + 1]][: int(kv_len_arr[n])].long()
                for n in range(requests)
            ],
            "heads": (num_qo_heads, num_kv_heads, head_dim_qk),
            "scale": sm_scale,
            "types": (q_data_type, kv_data_type),
        }

    def run(
        self,
        q: torch.Tensor,
        kv_cache: tuple[torch.Tensor, torch.Tensor],
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = kv_cache
        heads, kv_heads, size = self.planned["heads"]
        assert q.shape == (self.planned["queries"][-1], heads, size)
        assert keys.shape[1:] == values.shape[1:] == (1, kv_heads, size)
        assert self.planned["types"] == (q.dtype, keys.dtype)
        assert out is not None
        for number, slots in enumerate(self.planned["slots"]):
            rows = slice(*self.planned["queries"][number : number + 2])
            out[rows] = attend(q[rows], keys[slots, 0], values[slots, 0], self.planned["scale"])
        return out, torch.empty(0)


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """(new, heads, size) causal attention of the last tokens of one request to all of it."""
    new, length = q.shape[0], keys.shape[0]
    seen = torch.ones(new, length, dtype=torch.bool).tril(length - new)
    return torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        attn_mask=seen,
        scale=scale,
        enable_gqa=True,
    ).transpose(0, 1)
