"""A mixed step as FlashInfer's kernel for mixed batches takes it, and the call of that kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


def is_mixed(new_tokens: Sequence[int], cached_tokens: Sequence[int]) -> bool:
    """Whether requests with one new token behind cached ones, as decodes have, are beside others.

    SGLang's runners call a mixed step an extend like any other, so its rows must say it.
    ``new_tokens``, ``cached_tokens``: of each request.
    """
    decodes = sum(
        new == 1 and cached > 0 for new, cached in zip(new_tokens, cached_tokens, strict=True)
    )
    return 0 < decodes < len(new_tokens)


def heads_of(layer: Any) -> tuple[int, int, int, float]:
    """Query heads, KV heads, head size and scale of scores of one of SGLang's attention layers."""
    return layer.tp_q_head_num, layer.tp_k_head_num, layer.head_dim, layer.scaling


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """The rows of b requests and the KV slots that each of them attends to; int32 tensors."""

    query_ends: torch.Tensor
    """(b + 1,) where the new tokens of each begin and end among all new tokens."""
    kv_ends: torch.Tensor
    """(b + 1,) where the slots of each begin and end in `kv_slots`."""
    kv_slots: torch.Tensor
    """(KV tokens of all,) slots of the pool, request by request."""
    kv_lengths: torch.Tensor
    """(b,) KV tokens of each, the new ones included."""

    @classmethod
    def of(
        cls,
        slot_table: torch.Tensor,
        requests: torch.Tensor,
        lengths: torch.Tensor,
        new_tokens: torch.Tensor,
        kv_tokens: int,
    ) -> MixedBatch:
        """Put a step together without waiting for the device.

        Args:
            slot_table: (rows, most tokens) slots of each request (SGLang's ``req_to_token``).
            requests: (b,) rows of the table.
            lengths: (b,) KV tokens of each request, the new ones included.
            new_tokens: (b,) of them that the step computes, the last ones.
            kv_tokens: sum of ``lengths``, known on the host.
        """
        kv_ends, query_ends = _ends(lengths), _ends(new_tokens)
        rows = torch.repeat_interleave(requests.long(), lengths.long(), output_size=kv_tokens)
        begins = torch.repeat_interleave(kv_ends[:-1], lengths.long(), output_size=kv_tokens)
        places = torch.arange(kv_tokens, device=lengths.device) - begins
        slots = slot_table[rows, places].to(torch.int32)
        return cls(query_ends, kv_ends, slots, lengths.to(torch.int32))


class FusedAttention:
    """Plans a mixed step once and runs the kernel for each of its layers."""

    def __init__(self, kernel: Any, heads: tuple[int, int, int, float], dtype: torch.dtype) -> None:
        """``kernel``: FlashInfer's ``BatchAttention``. ``heads``: query heads, KV heads, head
        size, scale of scores; the same in all layers. ``dtype``: of queries and KV cache."""
        self._kernel, self._dtype = kernel, dtype
        self._query_heads, self._kv_heads, self._size, self._scale = heads
        self._new_tokens = 0

    def plan(self, batch: MixedBatch, new_tokens: int) -> None:
        """Divide the step's work among the kernel's blocks; waits for the device.

        ``new_tokens``: of all requests.
        """
        self._new_tokens = new_tokens
        self._kernel.plan(
            batch.query_ends,
            batch.kv_ends,
            batch.kv_slots,
            batch.kv_lengths,
            self._query_heads,
            self._kv_heads,
            self._size,
            self._size,
            1,  # a page is one slot, as in SGLang's own FlashInfer backend
            causal=True,
            sm_scale=self._scale,
            q_data_type=self._dtype,
            kv_data_type=self._dtype,
        )

    def try_out(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Plan and run a smallest mixed step, which compiles the kernel (a minute or two, once).

        ``keys``, ``values``: (slots, KV heads, head size), which are read.
        """
        new, cached = torch.tensor([[2, 1], [0, 1]], device=keys.device)
        slots = torch.zeros(2, 2, dtype=torch.int32, device=keys.device)
        rows = torch.arange(2, device=keys.device)
        self.plan(MixedBatch.of(slots, rows, new + cached, new, 4), 3)
        width = self._query_heads * self._size
        self.run(torch.zeros(3, width, dtype=self._dtype, device=keys.device), keys, values)

    def run(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attend of one layer.

        Args:
            q: (tokens, query heads * head size); tokens behind those of the plan, which a step of
                a CUDA graph is filled up with, are given zeros.
            keys, values: (slots, KV heads, head size), the new tokens' included.

        Returns:
            As ``q``.
        """
        rows = q.contiguous().view(-1, self._query_heads, self._size)
        out = torch.zeros_like(rows) if rows.shape[0] > self._new_tokens else torch.empty_like(rows)
        part = slice(self._new_tokens)
        self._kernel.run(rows[part], (keys.unsqueeze(1), values.unsqueeze(1)), out=out[part])
        return out.view(q.shape)


def _ends(counts: torch.Tensor) -> torch.Tensor:
    """(b + 1,) int32: 0 and the running sums of (b,) counts."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
