"""The request-to-slot copies against loops over single slots."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sgl_kernel import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    copy_all_layer_kv_cache_cpu,
)

POOL_LEN = 24
spans = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8)).map(lambda s: (s[0], s[0] + s[1])), max_size=6
)


def _table(rows: int) -> torch.Tensor:
    return torch.arange(rows * POOL_LEN, dtype=torch.int32).view(rows, POOL_LEN)


def _columns(pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    start = torch.tensor([s for s, _ in pairs], dtype=torch.int64)
    end = torch.tensor([e for _, e in pairs], dtype=torch.int64)
    return start, end


@given(spans, st.randoms(use_true_random=False))
def test_assigning_slots_writes_exactly_the_spans(pairs, random):
    rows = random.sample(range(8), len(pairs))
    start, end = _columns(pairs)
    slots = torch.arange(1000, 1000 + int((end - start).sum()) + 3)
    got, want = _table(8), _table(8)
    assign_req_to_token_pool_cpu(torch.tensor(rows), got, start, end, slots, POOL_LEN)
    taken = iter(slots.tolist())
    for row, (first, last) in zip(rows, pairs, strict=True):
        for column in range(first, last):
            want[row, column] = next(taken)
    assert torch.equal(got, want)


@given(spans, st.randoms(use_true_random=False))
def test_reading_slots_concatenates_the_spans(pairs, random):
    rows = [random.randrange(8) for _ in pairs]
    start, end = _columns(pairs)
    table, out = _table(8), torch.full((64,), -1, dtype=torch.int64)
    assign_extend_cache_locs_cpu(torch.tensor(rows), table, start, end, out, POOL_LEN)
    want = [int(table[r, c]) for r, (s, e) in zip(rows, pairs, strict=True) for c in range(s, e)]
    assert out.tolist() == want + [-1] * (64 - len(want))


@given(st.lists(st.integers(0, 10), max_size=5), st.integers(1, 3), st.integers(1, 4))
def test_draft_slots_follow_each_sequence(lens, topk, steps):
    table = _table(8)
    rows = list(range(len(lens)))
    out = torch.full((len(lens) * topk * steps,), -1, dtype=torch.int64)
    assign_draft_cache_locs_contiguous_cpu(
        torch.tensor(rows, dtype=torch.int64),
        table,
        torch.tensor(lens, dtype=torch.int64),
        out,
        POOL_LEN,
        topk,
        steps,
    )
    want = [
        int(table[r, n + i]) for r, n in zip(rows, lens, strict=True) for i in range(topk * steps)
    ]
    assert out.tolist() == want


@given(st.permutations(range(9)), st.permutations(range(9)), st.integers(0, 9))
def test_copying_slots_reads_every_source_before_writing(targets, sources, count):
    buffers = [torch.randn(9, 2, 4), torch.randn(9, 3).to(torch.bfloat16)]
    want = [b.clone() for b in buffers]
    for old, new in zip(buffers, want, strict=True):
        for target, source in zip(targets[:count], sources[:count], strict=True):
            new[target] = old[source].clone()
    copy_all_layer_kv_cache_cpu(
        torch.tensor([b.data_ptr() for b in buffers], dtype=torch.uint64),
        torch.tensor([b[0].numel() * b.element_size() for b in buffers]),
        torch.tensor(targets[:count], dtype=torch.int64),
        torch.tensor(sources[:count], dtype=torch.int64),
    )
    assert all(torch.equal(a, b) for a, b in zip(buffers, want, strict=True))
