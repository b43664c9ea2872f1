"""Attention over SGLang's paged KV pool: decode and extend, in one batched call per layer.

Shapes: ``q`` [tokens, heads, k size], the new tokens of all sequences one after the other;
``k_buffer`` [slots, KV heads, k size] and ``v_buffer`` [slots, KV heads, v size], the pool of one
layer; ``req_to_token`` [requests, positions] int32, the slot of each position of each request.
Sequence ``s`` is row ``req_pool_indices[s]`` of that table, has ``seq_lens[s]`` positions, and its
last ``new_lens[s]`` of them are the tokens in ``q`` (all int64). Decode is ``new_lens`` all 1;
extend with a cached prefix is ``new_lens < seq_lens``; a mixed batch has both. Page sizes need
nothing more: a slot is found by position whatever the size of the pages it was allocated in.
"""

from __future__ import annotations

import torch

from sgl_kernel import native

MAX_HEAD_SIZE = 256
"""Largest head size the kernels are tested for."""

_QUERY_BLOCK = 128
_POSITION_BLOCK = 512


def paged_attention(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    new_lens: torch.Tensor,
    scale: float,
    causal: bool = True,
) -> torch.Tensor:
    """Return softmax(scale * q k^T) v for every new token, [tokens, heads, v size] in q's dtype.

    Head ``h`` of ``q`` uses KV head ``h // (heads // KV heads)``. A token sees the positions of
    its sequence up to its own, or all of them if not ``causal``. Sums are kept in float32. Rows of
    ``q`` beyond the sequences' new tokens (padding) come out as zeros.

    Raises:
        ValueError: a head is larger than `MAX_HEAD_SIZE`.
        RuntimeError: shapes, dtypes or lengths that do not fit together (with what was expected).
    """
    if max(q.shape[-1], v_buffer.shape[-1]) > MAX_HEAD_SIZE:
        raise ValueError(
            f"head size {max(q.shape[-1], v_buffer.shape[-1])}: the CPU kernels take at most "
            f"{MAX_HEAD_SIZE}"
        )
    extension, _ = native.load()
    compute = paged_attention_torch if extension is None else extension.paged_attention
    result: torch.Tensor = compute(
        q, k_buffer, v_buffer, req_to_token, req_pool_indices, seq_lens, new_lens, scale, causal
    )
    return result


def paged_attention_torch(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    new_lens: torch.Tensor,
    scale: float,
    causal: bool = True,
) -> torch.Tensor:
    """`paged_attention` in plain torch, for machines without a C++ compiler.

    Loops over blocks of queries and of positions, each step for all sequences at once.
    """
    out = q.new_zeros(q.shape[0], q.shape[1], v_buffer.shape[-1])
    first = torch.cumsum(new_lens, 0) - new_lens
    for start in range(0, int(new_lens.max()) if new_lens.numel() else 0, _QUERY_BLOCK):
        rows = torch.nonzero(new_lens > start).flatten()
        count = (new_lens[rows] - start).clamp(max=_QUERY_BLOCK)
        offset = torch.arange(int(count.max()))
        real = offset < count[:, None]
        token = torch.where(real, first[rows, None] + start + offset, 0)
        position = (seq_lens - new_lens)[rows, None] + start + offset
        visible = position + 1 if causal else seq_lens[rows, None].expand_as(position)
        visible = torch.where(real, visible, 1)
        result = _attend(
            q[token].float() * scale,
            k_buffer,
            v_buffer,
            req_to_token,
            req_pool_indices[rows],
            seq_lens[rows],
            visible,
        )
        out[token[real]] = result[real].to(out.dtype)
    return out


def _attend(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    req_to_token: torch.Tensor,
    requests: torch.Tensor,
    seq_lens: torch.Tensor,
    visible: torch.Tensor,
) -> torch.Tensor:
    """Online softmax over blocks of positions for ``q`` [sequences, queries, heads, k size], of
    which query [s, i] sees the first ``visible[s, i]`` positions."""
    sequences, queries, heads, _ = q.shape
    kv_heads = k_buffer.shape[1]
    q = q.unflatten(2, (kv_heads, heads // kv_heads))
    acc = q.new_zeros(*q.shape[:4], v_buffer.shape[-1])
    total, top = q.new_zeros(q.shape[:4]), q.new_full(q.shape[:4], -torch.inf)
    for start in range(0, int(visible.max()), _POSITION_BLOCK):
        position = start + torch.arange(min(_POSITION_BLOCK, int(visible.max()) - start))
        # Positions past a sequence's end hold stale slots: read one that exists, then mask it.
        slots = req_to_token[requests[:, None], position.minimum(seq_lens[:, None] - 1)].long()
        k, v = k_buffer[slots].float(), v_buffer[slots].float()
        scores = torch.einsum("sqhgd,sphd->sqhgp", q, k)
        hidden = position >= visible[..., None]
        scores.masked_fill_(hidden[:, :, None, None, :], -torch.inf)
        new_top = torch.maximum(top, scores.amax(-1))
        decay = torch.exp(top - new_top)
        weights = torch.exp(scores - new_top[..., None])
        total = total * decay + weights.sum(-1)
        acc = acc * decay[..., None] + torch.einsum("sqhgp,sphd->sqhgd", weights, v)
        top = new_top
    return (acc / total[..., None]).view(sequences, queries, heads, -1)
