"""The attention kernel that engines use, against float32 attention, before anything is timed.

    python benchmark/gpu/check_attention.py ORDER.json OUT.json

ORDER: ``device``, and ``fused``: whether to check the kernel for mixed steps, too. On a GPU:
FlashAttention 3 through ``sgl_kernel`` for decode, prefill and prefill behind a cached prefix, head
sizes 128 and 64; and FlashInfer's ``BatchAttention`` for all of that in one step. On a CPU: torch's
own, to check this script.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CASES = (
    # requests, new tokens of each, shortest and longest context, page size
    (8, 1, 1, 3000, 1),
    (64, 1, 500, 4000, 1),
    (4, 300, 300, 301, 1),
    (4, 300, 301, 3000, 1),
    (8, 1, 1, 3000, 64),
    (3, 200, 201, 2000, 64),
    (1, 1, 8000, 8001, 1),
)
SMALL = ((3, 1, 1, 40, 1), (2, 7, 7, 30, 4))
MIXED = (
    (300, 0),
    (300, 1700),
    (1, 2500),
    (77, 1),
    (1, 1),
    (2, 0),
    (1, 40_000),  # long enough that several blocks divide it
    *((1, 40 * n) for n in range(1, 60)),
)
"""New and cached tokens of the requests of a mixed step."""
HEADS, KV_HEADS = 32, 8
TOLERANCE = 1e-2
"""Largest error relative to the norm, in bfloat16."""


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, new: int) -> torch.Tensor:
    """(new, heads, dim) float32 causal attention of the last ``new`` tokens of one request."""
    import torch

    length = keys.shape[0]
    groups = q.shape[1] // keys.shape[1]
    k, v = (x.float().repeat_interleave(groups, 1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * q.shape[2] ** -0.5
    last = torch.arange(new, device=q.device)[:, None] + (length - new)
    hidden = torch.arange(length, device=q.device)[None] > last
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -float("inf")).softmax(-1), v)


def kernel(device: str) -> Any:
    """The function that is checked; takes FlashAttention's arguments for a paged KV cache."""
    if device != "cpu":
        from sgl_kernel.flash_attn import flash_attn_with_kvcache

        return flash_attn_with_kvcache

    def on_cpu(**a: Any) -> Any:
        import torch

        out = torch.empty_like(a["q"])
        ends = a["cu_seqlens_q"].tolist()
        for index, (begin, end) in enumerate(pairwise(ends)):
            length = int(a["cache_seqlens"][index])
            keys, values = (
                a[name][a["page_table"][index].long()].flatten(0, 1)[:length].transpose(0, 1)
                for name in ("k_cache", "v_cache")
            )
            seen = torch.ones(end - begin, length, dtype=torch.bool).tril(length - (end - begin))
            out[begin:end] = torch.nn.functional.scaled_dot_product_attention(
                a["q"][begin:end].transpose(0, 1), keys, values, attn_mask=seen, enable_gqa=True
            ).transpose(0, 1)
        return out

    return on_cpu


def check(
    device: str, dim: int, case: tuple[int, int, int, int, int], function: Any
) -> dict[str, Any]:
    """The error of one case, relative to the norm of the float32 result."""
    import torch

    requests, new, least, most, page = case
    lengths = torch.randint(least, most, (requests,)).clamp(min=new)
    pages = int((lengths.max() + page - 1) // page)
    table = torch.randperm(requests * pages).view(requests, pages).int().to(device)
    cache = (requests * pages, page, KV_HEADS, dim)
    keys, values = (torch.randn(cache, device=device, dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(requests * new, HEADS, dim, device=device, dtype=torch.bfloat16)
    ends = torch.arange(0, requests * new + 1, new, dtype=torch.int32, device=device)
    context = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().to(device)
    out = function(
        q=q,
        k_cache=keys,
        v_cache=values,
        page_table=table,
        cache_seqlens=lengths.int().to(device),
        cu_seqlens_q=ends,
        cu_seqlens_k_new=context,
        max_seqlen_q=new,
        causal=True,
    )
    expected = torch.empty_like(q, dtype=torch.float32)
    for index in range(requests):
        rows = slice(index * new, (index + 1) * new)
        k, v = (x[table[index].long()].flatten(0, 1)[: int(lengths[index])] for x in (keys, values))
        expected[rows] = attend(q[rows], k, v, new)
    error = float((out.float() - expected).norm() / expected.norm())
    return {"head_dim": dim, "case": list(case), "error": error, "ok": error < TOLERANCE}


def check_mixed(device: str, dim: int, kernel: Any) -> dict[str, Any]:
    """The error of one mixed step through FlashInfer's kernel, as `check`'s."""
    import torch

    from sglang.srt.blendserve.runtime.fused.mixed_batch import FusedAttention, MixedBatch

    new, cached = (torch.tensor(part, device=device) for part in zip(*MIXED, strict=True))
    lengths = new + cached
    total = int(lengths.sum())
    keys, values = (
        torch.randn(total, KV_HEADS, dim, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    q = torch.randn(int(new.sum()), HEADS * dim, device=device, dtype=torch.bfloat16)
    slots = torch.randperm(total, device=device).split(lengths.tolist())
    table = torch.zeros(len(MIXED), int(lengths.max()), dtype=torch.int32, device=device)
    for row, own in zip(table, slots, strict=True):
        row[: own.numel()] = own
    rows = torch.arange(len(MIXED), device=device)
    fused = FusedAttention(kernel, (HEADS, KV_HEADS, dim, dim**-0.5), torch.bfloat16)
    fused.plan(MixedBatch.of(table, rows, lengths, new, total), len(q))
    out = fused.run(q, keys, values).float()
    # Of each request for itself: the outputs of long contexts are small beside those of short ones.
    error = 0.0
    parts = (x.view(-1, HEADS, dim).split(new.tolist()) for x in (q, out))
    for mine, found, own in zip(*parts, slots, strict=True):
        expected = attend(mine, keys[own], values[own], len(mine))
        error = max(error, float((found - expected).norm() / expected.norm()))
    return {"head_dim": dim, "case": "mixed", "error": error, "ok": error < TOLERANCE}


def main(order: dict[str, Any], target: Path) -> int:
    """Write all errors; 1 if one is too large."""
    import torch

    torch.manual_seed(0)
    device = order["device"]
    function = kernel(device)
    cases = SMALL if device == "cpu" else CASES
    results = [check(device, dim, case, function) for dim in (128, 64) for case in cases]
    found: dict[str, Any] = {"results": results, "ok": all(r["ok"] for r in results)}
    target.write_text(json.dumps(found))
    if order.get("fused"):
        found |= fused(device)
        target.write_text(json.dumps(found))
    return 0 if found["ok"] else 1


def fused(device: str) -> dict[str, Any]:
    """The check of mixed steps; what goes wrong in it is its result, and spoils no other."""
    try:
        from flashinfer import BatchAttention

        mixed = [check_mixed(device, dim, BatchAttention("NHD", device)) for dim in (128, 64)]
    except Exception as error:
        return {"fused_ok": False, "fused_error": f"{type(error).__name__}: {error}"}
    wrong = [
        f"an error of {r['error']:.2g} at head size {r['head_dim']}" for r in mixed if not r["ok"]
    ]
    return {"fused": mixed, "fused_ok": not wrong, "fused_error": "; ".join(wrong)}


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
