"""Measures a model's kernels on the machine at hand, in the form of ``cost/kernel_tables``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang.srt.blendserve.cost.layer_shape import HeadLayout, LayerShape
from sglang.srt.blendserve.simulator.probes import Layer, seconds_of

TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Rows of the matrix products that are measured."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured on one kind of device; lengths in tokens."""

    weights: int
    """Bytes of different weights that a product goes through, more than caches hold."""
    work: float
    """Floating-point operations in one repeat of a product, at most, if it has several weights."""
    most_tokens: int
    """Largest number of rows of a product."""
    prompts: tuple[tuple[int, ...], tuple[int, ...]]
    """Numbers of prompts, and their lengths."""
    decodes: tuple[tuple[int, ...], tuple[int, ...]]
    """Numbers of decodes, and their contexts."""


GPU = Sizes(
    weights=2 << 30,
    work=2e12,
    most_tokens=4096,
    prompts=((1, 4, 16), (128, 512, 2048, 4096)),
    decodes=((1, 8, 32, 128, 256), (128, 512, 2048, 4096)),
)
CPU = Sizes(
    weights=256 << 20,
    work=2e10,
    most_tokens=1024,
    prompts=((1, 4), (64, 256, 1024)),
    decodes=((1, 8, 32, 64), (64, 256, 1024)),
)


def measure_kernels(
    shape: LayerShape, device: str, sizes: Sizes, progress: Callable[[], object]
) -> dict[str, Rows]:
    """Return the rows of each table by name (`kernel_times.TABLES`).

    ``device``: torch's, ``cpu`` or ``cuda``. ``progress``: called after each of the `probes`.
    """
    layer = Layer(shape, device)
    gemm = []
    for n, k in products(shape):
        for tokens in _tokens(sizes):
            copies = max(
                min(sizes.weights // (2 * n * k), int(sizes.work / (2 * tokens * n * k))), 1
            )
            seconds = seconds_of(layer.product(n, k, tokens, copies), device) / copies
            gemm.append({"m": tokens, "n": n, "k": k, "milliseconds": 1e3 * seconds})
            progress()
    heads = shape.layout()
    tables = {"gemm": gemm}
    for table, (batches, contexts) in _attention(sizes).items():
        rows = tables[table] = []
        for batch in batches:
            for context in contexts:
                new = context if table == "prefill-attention" else 1
                work, _, _ = layer.attention(batch, context, new)
                rows.append(_row(heads, batch, context, seconds_of(work, device)))
                progress()
    return tables


def probes(shape: LayerShape, sizes: Sizes) -> int:
    """Return how many kernels `measure_kernels` measures."""
    attention = sum(
        len(batches) * len(contexts) for batches, contexts in _attention(sizes).values()
    )
    return len(products(shape)) * len(_tokens(sizes)) + attention


def products(shape: LayerShape) -> list[tuple[int, int]]:
    """Return (n, k) of the layer's matrix products and of the output head."""
    return [*dict.fromkeys(shape.products()), (shape.vocabulary, shape.hidden)]


def _tokens(sizes: Sizes) -> list[int]:
    return [tokens for tokens in TOKENS if tokens <= sizes.most_tokens]


def _attention(sizes: Sizes) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    return {"prefill-attention": sizes.prompts, "decode-attention": sizes.decodes}


def _row(heads: HeadLayout, batch: int, context: int, seconds: float) -> dict[str, Any]:
    where = {"batch": batch, **heads._asdict(), "context": context}
    return {**where, "milliseconds": 1e3 * seconds}
