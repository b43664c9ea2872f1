"""Float64 references and random paged pools for the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
"""Largest absolute error of an attention output whose values are of size 1: rounding the result
(bfloat16: 2^-8, float16: 2^-11) and, in prefill, the softmax weights."""


@dataclass
class Pool:
    """A KV pool with the slots of every position scattered, and the lengths of its sequences."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    req_to_token: torch.Tensor
    requests: torch.Tensor
    seq_lens: torch.Tensor
    new_lens: torch.Tensor
    scale: float

    def arguments(self) -> tuple[torch.Tensor | float, ...]:
        lens = (self.seq_lens, self.new_lens)
        return (self.q, self.k, self.v, self.req_to_token, self.requests, *lens, self.scale)


def make_pool(
    lens: list[tuple[int, int]],
    *,
    kv_heads: int = 2,
    group: int = 3,
    k_size: int = 64,
    v_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    page_size: int = 1,
    seed: int = 0,
) -> Pool:
    """Return random queries and a pool for sequences of ``lens`` (prefix, new tokens).

    Slots are given out in whole pages in random order; slot 0's page stays unused as in SGLang, and
    unused slots and table cells hold NaN and wrong slots, so that reading one shows.
    """
    torch.manual_seed(seed)
    v_size = k_size if v_size is None else v_size
    pages = [-(-(p + n) // page_size) for p, n in lens]
    slots = (sum(pages) + 2) * page_size
    k = torch.full((slots, kv_heads, k_size), torch.nan)
    v = torch.full((slots, kv_heads, v_size), torch.nan)
    width = max([p + n for p, n in lens], default=0) + 3
    table = torch.full((len(lens) + 2, width), slots - 1, dtype=torch.int32)
    requests = torch.randperm(len(lens) + 1)[: len(lens)] + 1
    free = iter((torch.randperm(sum(pages)) + 1).tolist())
    for row, (prefix, new), count in zip(requests.tolist(), lens, pages, strict=True):
        mine = torch.tensor([next(free) for _ in range(count)], dtype=torch.int64)
        mine = (mine[:, None] * page_size + torch.arange(page_size)).flatten()[: prefix + new]
        table[row, : prefix + new] = mine.to(torch.int32)
        k[mine] = torch.randn(prefix + new, kv_heads, k_size)
        v[mine] = torch.randn(prefix + new, kv_heads, v_size)
    q = torch.randn(sum(n for _, n in lens), kv_heads * group, k_size)
    seq_lens = torch.tensor([p + n for p, n in lens], dtype=torch.int64)
    new_lens = torch.tensor([n for _, n in lens], dtype=torch.int64)
    k, v, q = (x.to(dtype) for x in (k, v, q))
    return Pool(q, k, v, table, requests.to(torch.int64), seq_lens, new_lens, k_size**-0.5)


def attention_reference(pool: Pool, causal: bool = True) -> torch.Tensor:
    """Attention of every new token in float64, one sequence and one head at a time."""
    group = pool.q.shape[1] // pool.k.shape[1]
    out = torch.empty(*pool.q.shape[:2], pool.v.shape[-1], dtype=torch.float64)
    done = 0
    for row, length, new in zip(
        pool.requests.tolist(), pool.seq_lens.tolist(), pool.new_lens.tolist(), strict=True
    ):
        slots = pool.req_to_token[row, :length].long()
        hidden = torch.arange(length) > torch.arange(length - new, length)[:, None]
        for head in range(pool.q.shape[1]):
            q = pool.q[done : done + new, head].double()
            scores = pool.scale * q @ pool.k[slots, head // group].double().T
            if causal:
                scores = scores.masked_fill(hidden, -torch.inf)
            weights = torch.softmax(scores, -1)
            out[done : done + new, head] = weights @ pool.v[slots, head // group].double()
        done += new
    return out
