"""KV cache pages (``--page-size`` above 1) on a machine without a GPU.

SGLang hands out pages in two Triton kernels, which do not run on the CPU. Here they are in torch;
the extend kernel's torch form comes with SGLang, where other hardware uses it.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.mem_cache.allocator import paged
from torch import Tensor


class _Launch:
    """Takes the place of a Triton kernel: ``kernel[grid](*arguments)``."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._function


def alloc_extend(
    prefix_lens: Tensor,
    seq_lens: Tensor,
    last_loc: Tensor,
    free_pages: Tensor,
    out_indices: Tensor,
    _batch_upper: int,
    page_size: int,
) -> None:
    """Write the slots for the tokens from ``prefix_lens`` (b,) to ``seq_lens`` (b,) into
    ``out_indices``."""
    paged.alloc_extend_naive(
        prefix_lens, seq_lens, last_loc, free_pages, out_indices, page_size, out_indices.device
    )


def alloc_decode(
    seq_lens: Tensor,
    last_loc: Tensor,
    free_pages: Tensor,
    out_indices: Tensor,
    _batch_upper: int,
    page_size: int,
) -> None:
    """Write one slot for each sequence into ``out_indices`` (b,): the one behind its last slot
    ``last_loc`` (b,), or the first of a free page where its last page is full."""
    out_indices.copy_(last_loc + 1)
    new_page = (seq_lens - 1) % page_size == 0
    out_indices[new_page] = free_pages[: int(new_page.sum())] * page_size


def use_torch_paging() -> None:
    """Let SGLang's paged allocator use the functions above."""
    paged.alloc_extend_kernel = _Launch(alloc_extend)
    paged.alloc_decode_kernel = _Launch(alloc_decode)
