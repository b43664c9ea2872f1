"""Work of one transformer layer for calibration: its matrix products and its attention.

On a GPU these are torch's; on a CPU the compiled kernels of ``sgl_kernel`` that the attention
backend ``blend_cpu`` uses, or torch's where they are not built.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sglang.srt.blendserve.cost.layer_shape import LayerShape

Work = Callable[[], object]

_PROBE_SECONDS = 0.4
"""Time spent repeating one measurement."""
_LEAST_REPEATS = 3
"""Fewest repeats of a measurement, however long it takes."""


class Layer:
    """Matrix products and attention of a model's layer on a device, with random numbers."""

    def __init__(self, shape: LayerShape, device: str) -> None:
        import torch

        self.shape, self.device = shape, device
        self.dtype = torch.bfloat16

    def _random(self, *size: int) -> torch.Tensor:
        import torch

        return torch.randn(*size, device=self.device, dtype=self.dtype)

    def product(self, n: int, k: int, tokens: int, copies: int) -> Work:
        """The work of C[m, n] = A[m, k] B[k, n] for m = ``tokens``, with ``copies`` different B in
        turn, so that each comes from memory and not from a processor's cache."""
        linear = _linear(self.device)
        weights = [self._random(n, k) for _ in range(copies)]
        given = self._random(tokens, k)

        def work() -> None:
            for weight in weights:
                linear(given, weight)

        return work

    def layer(self, tokens: int) -> Work:
        """The work of all products of one layer for ``tokens`` tokens."""
        parts = [self.product(n, k, tokens, 1) for n, k in self.shape.products()]

        def work() -> None:
            for part in parts:
                part()

        return work

    def attention(self, sequences: int, context: int, new: int) -> tuple[Work, float, float]:
        """Attention of ``new`` tokens at the end of ``context`` for each of ``sequences``.

        Returns the work, the bytes of KV cache that it reads and its floating-point operations.
        """
        import torch

        shape = self.shape
        cache = (sequences * context, shape.kv_heads, shape.head_dim)
        keys, values = self._random(*cache), self._random(*cache)
        pairs = sequences * new * (context - new + (new + 1) / 2)
        flops = 4.0 * shape.heads * shape.head_dim * pairs
        read = 2.0 * keys.numel() * keys.element_size()
        if self.device == "cpu":
            from sgl_kernel.attention import paged_attention

            q = self._random(sequences * new, shape.heads, shape.head_dim)
            table = torch.arange(sequences * context, dtype=torch.int32).view(sequences, context)
            rows = torch.arange(sequences)
            lengths = torch.full((sequences,), context)
            fresh = torch.full((sequences,), new)
            scale = shape.head_dim**-0.5
            arguments = (q, keys, values, table, rows, lengths, fresh, scale)
            return (lambda: paged_attention(*arguments)), read, flops
        q = self._random(sequences, shape.heads, new, shape.head_dim)
        k, v = (
            kv.view(sequences, context, shape.kv_heads, shape.head_dim).transpose(1, 2)
            for kv in (keys, values)
        )
        attend = torch.nn.functional.scaled_dot_product_attention
        causal = new == context
        return (lambda: attend(q, k, v, is_causal=causal, enable_gqa=True)), read, flops


def _linear(device: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    from torch.nn.functional import linear

    if device == "cpu":
        from sgl_kernel import native

        kernels, _ = native.load()
        if kernels is not None and kernels.has_linear():
            return lambda x, weight: kernels.linear(x, weight, None)
    return linear


def seconds_of(work: Work, device: str) -> float:
    """Least seconds of repeated runs, after one that is not timed: other work on the machine only
    ever slows a run down."""
    wait = _waiter(device)
    work()
    wait()
    best, repeats = float("inf"), 0
    stop = time.perf_counter() + _PROBE_SECONDS
    while repeats < _LEAST_REPEATS or time.perf_counter() < stop:
        start = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - start)
        repeats += 1
    return best


def _waiter(device: str) -> Callable[[], None]:
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def side_by_side(compute: Work, memory: Work) -> Work:
    """The work of doing both at once, on two streams of a GPU."""
    import torch

    streams = [torch.cuda.Stream() for _ in range(2)]

    def work() -> None:
        for stream, one in zip(streams, (compute, memory), strict=True):
            with torch.cuda.stream(stream):
                one()

    return work


def repeated(work: Work, times: int) -> Work:
    """The work of doing ``work`` so many ``times``, one after the other."""

    def all_of_it() -> None:
        for _ in range(times):
            work()

    return all_of_it
