"""Paged attention, compiled and in plain torch, against float64 over random batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import TOLERANCE, attention_reference, make_pool
from sgl_kernel.attention import paged_attention, paged_attention_torch

from sgl_kernel import native

EXTENSION, REASON = native.load()
needs_extension = pytest.mark.skipif(EXTENSION is None, reason=f"no compiled kernels: {REASON}")
KERNELS = [
    pytest.param(paged_attention, id="compiled", marks=needs_extension),
    pytest.param(paged_attention_torch, id="torch"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

lengths = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 15, 16, 63, 64, 65, 300]) | st.integers(0, 200),
        st.sampled_from([1, 1, 1, 2, 3, 4, 5, 64, 130]) | st.integers(0, 80),
    ),
    max_size=6,
)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n} threads")
def threads(request, one_thread):
    torch.set_num_threads(request.param)
    return request.param


def _check(kernel, pool, causal=True):
    got = kernel(*pool.arguments(), causal)
    want = attention_reference(pool, causal)
    assert got.dtype == pool.q.dtype
    assert got.shape == want.shape
    torch.testing.assert_close(got.double(), want, atol=TOLERANCE[pool.q.dtype], rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    lens=lengths,
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 4, 5, 8]),
    k_size=st.sampled_from([16, 32, 64, 80, 128]) | st.integers(1, 256),
    v_size=st.none() | st.integers(1, 256),
    dtype=st.sampled_from(DTYPES),
    page_size=st.sampled_from([1, 16, 64]),
    causal=st.sampled_from([True, True, False]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=100)
def test_random_batches(
    kernel, lens, kv_heads, group, k_size, v_size, dtype, page_size, causal, seed
):
    pool = make_pool(lens, kv_heads=kv_heads, group=group, k_size=k_size, v_size=v_size,
                     dtype=dtype, page_size=page_size, seed=seed)  # fmt: skip
    _check(kernel, pool, causal)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [0, 1, 7, 64, 256])
def test_decode_batches_up_to_256_with_ragged_lengths(kernel, dtype, batch, threads):
    lens = [((37 * i * i) % 700, 1) for i in range(batch)]
    _check(kernel, make_pool(lens, dtype=dtype))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_contexts_are_split_between_threads_and_merged(kernel, dtype, threads):
    _check(kernel, make_pool([(9000, 1), (4, 1), (2500, 3)], kv_heads=1, dtype=dtype))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mixed_batch_of_decodes_and_prefill_chunks(kernel, dtype, threads):
    _check(kernel, make_pool([(500, 1), (0, 129), (77, 1), (300, 64), (0, 1)], dtype=dtype))


@pytest.mark.parametrize("kernel", KERNELS)
def test_multi_query_attention_with_many_heads(kernel):
    _check(kernel, make_pool([(100, 1), (20, 30)], kv_heads=1, group=32, k_size=128))


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_scores_do_not_overflow(kernel):
    pool = make_pool([(200, 1), (100, 40)])
    pool.q *= 300
    pool.scale = 1.0
    _check(kernel, pool)


@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_rows_come_out_as_zeros(kernel):
    pool = make_pool([(5, 1), (0, 3)])
    pool.q = torch.cat([pool.q, torch.full_like(pool.q[:2], torch.nan)])
    out = kernel(*pool.arguments())
    assert torch.equal(out[4:], torch.zeros_like(out[4:]))
    pool.q = pool.q[:4]
    torch.testing.assert_close(out[:4].double(), attention_reference(pool), atol=2e-5, rtol=0)


@needs_extension
def test_queries_may_be_a_slice_of_a_wider_row():
    pool = make_pool([(50, 1), (0, 9)])
    wide = torch.randn(10, 3 * 6 * 64)
    pool.q = wide[:, 64 : 64 + 6 * 64].view(-1, 6, 64)
    assert not pool.q.is_contiguous()
    _check(paged_attention, pool)


@needs_extension
def test_a_thread_count_does_not_change_which_sequences_are_read():
    """Unsplit work is bit for bit the same on any number of threads."""
    pool = make_pool([(100, 1), (0, 40), (37, 1)], dtype=torch.bfloat16)
    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        results.append(paged_attention(*pool.arguments()))
    assert all(torch.equal(results[0], r) for r in results[1:])


@needs_extension
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seq_lens", torch.tensor([9999]), "does not fit req_to_token"),
        ("seq_lens", torch.tensor([2], dtype=torch.int32), "expected a contiguous Long"),
        ("new_lens", torch.tensor([7]), "does not fit req_to_token"),
        ("requests", torch.tensor([-1]), "does not fit req_to_token"),
        ("k", torch.zeros(8, 2, 64, dtype=torch.bfloat16), "different dtypes"),
        ("v", torch.zeros(8, 1, 64), "shapes do not fit"),
        ("q", torch.zeros(3, 5, 64), "not a multiple"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(field, value, message):
    pool = make_pool([(2, 3)])
    setattr(pool, field, value)
    with pytest.raises(RuntimeError, match=message):
        paged_attention(*pool.arguments())


def test_heads_larger_than_256_are_refused():
    pool = make_pool([(2, 3)], k_size=257)
    with pytest.raises(ValueError, match="head size 257"):
        paged_attention(*pool.arguments())
