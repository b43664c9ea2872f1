"""Norm, activation, rotary embedding and linear kernels against float64 and stock torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_kernel import native

EXTENSION, REASON = native.load()
pytestmark = pytest.mark.skipif(EXTENSION is None, reason=f"no compiled kernels: {REASON}")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
STEP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Distance of neighbouring values at 1."""


def _close(got: torch.Tensor, want: torch.Tensor, steps: float) -> None:
    unit = STEP[got.dtype] * steps
    torch.testing.assert_close(got.double(), want.double(), rtol=unit, atol=unit)


@given(
    rows=st.integers(0, 5),
    size=st.integers(1, 300),
    dtype=DTYPES,
    add=st.booleans(),
    weight_f32=st.booleans(),
    cast_first=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_rms_norm(rows, size, dtype, add, weight_f32, cast_first, seed):
    torch.manual_seed(seed)
    weight_f32 = weight_f32 and not cast_first
    x = torch.randn(rows, size + 3).to(dtype)[:, :size]
    residual = torch.randn(rows, size).to(dtype) if add else None
    weight = torch.randn(size).to(torch.float32 if weight_f32 else dtype)
    out, total = EXTENSION.rms_norm(x, residual, weight, 1e-5, cast_first)
    summed = x.double() + (residual.double() if add else 0)
    want = summed * torch.rsqrt(summed.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    _close(out, want, 16)
    assert (total is None) == (not add)
    if add:
        assert torch.equal(total, (x.float() + residual.float()).to(dtype))


@given(st.integers(0, 5), st.integers(1, 300), DTYPES, st.integers(0, 2**31))
@settings(deadline=None)
def test_silu_and_mul(rows, size, dtype, seed):
    torch.manual_seed(seed)
    x = (torch.randn(rows, 2 * size) * 4).to(dtype)
    gate, up = x.double().chunk(2, -1)
    _close(EXTENSION.silu_and_mul(x), torch.nn.functional.silu(gate) * up, 16)


def test_silu_of_extreme_values():
    # Below about -1e24 the kernel's clamped exponential leaves up to 1e-8 where torch gives 0.
    gate = torch.tensor([[-200.0, -88.0, 0.0, 88.0, 1e30]])
    out = EXTENSION.silu_and_mul(torch.cat([gate, torch.ones_like(gate)], -1))
    want = torch.nn.functional.silu(gate)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-30)


@given(
    tokens=st.integers(1, 4),  # the reference cannot reshape none
    heads=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    half=st.integers(1, 64),
    rest=st.integers(0, 40),
    dtype=DTYPES,
    neox=st.booleans(),
    cache_f32=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_rotary_rounds_where_torch_rounds(tokens, heads, half, rest, dtype, neox, cache_f32, seed):
    torch.manual_seed(seed)
    size = 2 * half + rest
    positions = torch.randint(0, 50, (tokens,))
    angles = torch.rand(50, half) * 6
    cache = torch.cat([angles.cos(), angles.sin()], -1).to(torch.float32 if cache_f32 else dtype)
    wide = torch.randn(tokens, sum(heads) * size).to(dtype)
    q, k = wide.split([heads[0] * size, heads[1] * size], -1)
    cos, sin = (c[:, None].to(dtype) for c in cache[positions].chunk(2, -1))
    for got, x in zip(EXTENSION.rotary(positions, q, k, size, cache, neox), (q, k), strict=True):
        heads_of = x.reshape(tokens, -1, size)
        turned, kept = heads_of[..., : 2 * half], heads_of[..., 2 * half :]
        x1, x2 = turned.chunk(2, -1) if neox else (turned[..., ::2], turned[..., 1::2])
        o1, o2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
        pair = torch.cat([o1, o2], -1) if neox else torch.stack([o1, o2], -1).flatten(-2)
        # Float32 products may be fused with their sum here and not in torch.
        _close(got.view_as(heads_of), torch.cat([pair, kept], -1), 4)


def test_positions_outside_the_rotary_cache_are_refused():
    q = torch.zeros(1, 8)
    with pytest.raises(RuntimeError, match="position 5 lies outside"):
        EXTENSION.rotary(torch.tensor([5]), q, q, 8, torch.zeros(5, 8), True)


@pytest.mark.skipif(
    EXTENSION is not None and not EXTENSION.has_linear(), reason="CPU has no bf16 dot products"
)
@pytest.mark.parametrize("threads", [1, 3])
@given(
    rows=st.integers(0, 9) | st.sampled_from([48, 130, 700]),
    size=st.integers(1, 200) | st.sampled_from([576, 1536]),
    features=st.integers(1, 140),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_linear(threads, rows, size, features, bias, seed):
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    x = torch.randn(rows, size + 5).to(torch.bfloat16)[:, :size]
    weight = (torch.randn(features, size) / size**0.5).to(torch.bfloat16)
    offset = torch.randn(features).to(torch.bfloat16) if bias else None
    want = x.double() @ weight.double().T + (offset.double() if bias else 0)
    _close(EXTENSION.linear(x, weight, offset), want, 1)
