"""Sizes of one transformer layer, as its matrix products and its attention need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class HeadLayout(NamedTuple):
    """Attention heads of one rank: query heads, KV heads, and the width of each."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer of a dense decoder: widths in elements, heads as numbers."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool = True
    """Whether the feed-forward block has a gate beside its first matrix."""

    def products(self, ranks: int = 1) -> tuple[tuple[int, int], ...]:
        """Return (n, k) of the layer's matrix products C[m, n] = A[m, k] B[k, n] on one of
        ``ranks`` tensor parallel ranks: QKV, output, gate and up, down.

        Raises ValueError where the heads or the intermediate width cannot be divided so.
        """
        layout = self.layout(ranks)
        if self.intermediate % ranks:
            raise ValueError(f"{ranks} ranks cannot share {self.intermediate} intermediate columns")
        attention = layout.heads * layout.head_dim
        inner = self.intermediate // ranks
        return (
            (attention + 2 * layout.kv_heads * layout.head_dim, self.hidden),
            (self.hidden, attention),
            ((2 if self.gated else 1) * inner, self.hidden),
            (self.hidden, inner),
        )

    def layout(self, ranks: int = 1) -> HeadLayout:
        """Return the heads of one of ``ranks`` tensor parallel ranks; KV heads are copied where
        there are fewer than ranks.

        Raises ValueError where the query heads cannot be divided so.
        """
        if self.heads % ranks:
            raise ValueError(f"{ranks} ranks cannot share {self.heads} attention heads")
        return HeadLayout(self.heads // ranks, max(self.kv_heads // ranks, 1), self.head_dim)

    def moved_elements(self, ranks: int = 1) -> int:
        """Return the elements that one token's norms, rotary embedding and activation read and
        write in device memory, in one layer of one rank.

        Two norms with their residual read two vectors of the hidden width and write two. The
        rotary embedding reads and writes queries and keys, and the KV cache is written. The
        activation reads what the first products wrote and writes the input of the last.
        """
        heads, kv_heads, head_dim = self.layout(ranks)
        first = (2 if self.gated else 1) * self.intermediate // ranks
        norms = 2 * 4 * self.hidden
        rotary = 2 * (heads + kv_heads) * head_dim + 4 * kv_heads * head_dim
        return norms + rotary + first + self.intermediate // ranks
