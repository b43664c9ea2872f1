"""Copies between SGLang's request-to-slot table and flat lists of KV slots.

Shapes: ``bs`` requests; ``req_to_token`` [requests of the pool, pool_len] holds the KV slot of
every token of every request; offsets are token positions inside a request.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch


def segments(lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each element of the concatenation of segments of ``lengths`` [bs], the segment
    it belongs to and its offset in it (both int64, [sum of lengths])."""
    lengths = lengths.to(torch.int64)
    owner = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
    first = torch.cumsum(lengths, 0) - lengths
    return owner, torch.arange(owner.numel()) - first[owner]


def _cells(
    req_pool_indices: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column in ``req_to_token`` of positions [start, end) of each request, in order."""
    owner, offset = segments(end - start)
    return req_pool_indices.to(torch.int64)[owner], start.to(torch.int64)[owner] + offset


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write ``out_cache_loc``, request after request, into positions [start, end) of each row."""
    rows, columns = _cells(req_pool_indices, start_offset, end_offset)
    req_to_token[rows, columns] = out_cache_loc[: rows.numel()].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Read positions [start, end) of each row, request after request, into ``out_cache_loc``."""
    rows, columns = _cells(req_pool_indices, start_offset, end_offset)
    out_cache_loc[: rows.numel()] = req_to_token[rows, columns].to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """Read the ``topk * speculative_num_steps`` slots after each sequence into ``out_cache_loc``
    [bs * topk * speculative_num_steps]."""
    draft = topk * speculative_num_steps
    rows = req_pool_indices.to(torch.int64)[:, None]
    columns = seq_lens.to(torch.int64)[:, None] + torch.arange(draft)
    slots = req_to_token[rows, columns].to(out_cache_loc.dtype)
    out_cache_loc[: slots.numel()] = slots.reshape(-1)


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor,
    strides: torch.Tensor,
    tgt_loc: torch.Tensor,
    src_loc: torch.Tensor,
) -> None:
    """Copy KV slot ``src_loc[i]`` to ``tgt_loc[i]`` in every buffer.

    Args:
        data_ptrs: address of each K or V buffer [buffers].
        strides: bytes of one slot in each buffer [buffers].
        tgt_loc, src_loc: slots [n]; all sources are read before any target is written, so the two
            may overlap.
    """
    if src_loc.numel() == 0:
        return
    source, target = src_loc.numpy(), tgt_loc.numpy()
    slots = int(max(source.max(), target.max())) + 1
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        raw = (ctypes.c_uint8 * (slots * stride)).from_address(address)
        buffer = np.frombuffer(raw, dtype=np.uint8).reshape(slots, stride)
        buffer[target] = buffer[source]
