"""Pages are handed out on the CPU as SGLang's Triton kernels hand them out on a GPU."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.runtime.cpu.paging import alloc_decode, alloc_extend

sequences = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8)
page_sizes = st.sampled_from([2, 4, 16])


def grow(page_size: int, lengths: list[tuple[int, int]]) -> None:
    """Extend each sequence from nothing, extend again, decode five tokens; follow every slot."""
    free = torch.arange(1, 400, dtype=torch.int64)[torch.randperm(399)]
    slots: list[list[int]] = [[] for _ in lengths]

    def take(pages: int) -> None:
        nonlocal free
        free = free[pages:]

    for part in range(2):
        before = torch.tensor([len(s) for s in slots])
        after = before + torch.tensor([pair[part] for pair in lengths])
        last = torch.tensor([s[-1] if s else -1 for s in slots])
        out = torch.empty(int((after - before).sum()), dtype=torch.int64)
        alloc_extend(before, after, last, free, out, 8, page_size)
        take(int((-(-after // page_size) - -(-before // page_size)).sum()))
        for sequence, new in zip(slots, torch.split(out, (after - before).tolist()), strict=True):
            sequence.extend(new.tolist())
    for _ in range(5):
        after = torch.tensor([len(s) + 1 for s in slots])
        last = torch.tensor([s[-1] for s in slots])
        out = torch.empty(len(slots), dtype=torch.int64)
        alloc_decode(after, last, free, out, 8, page_size)
        take(int(((after - 1) % page_size == 0).sum()))
        for sequence, slot in zip(slots, out.tolist(), strict=True):
            sequence.append(slot)
    check(page_size, slots)


def check(page_size: int, slots: list[list[int]]) -> None:
    """No slot is used twice, and each page lies within one sequence, in order."""
    everything = [slot for sequence in slots for slot in sequence]
    assert len(set(everything)) == len(everything)
    owner: dict[int, int] = {}
    for number, sequence in enumerate(slots):
        for position, slot in enumerate(sequence):
            assert slot % page_size == position % page_size
            assert owner.setdefault(slot // page_size, number) == number
        for start in range(0, len(sequence), page_size):
            assert len({slot // page_size for slot in sequence[start : start + page_size]}) == 1


@given(page_size=page_sizes, lengths=sequences)
def test_sequences_grow_page_by_page(page_size: int, lengths: list[tuple[int, int]]) -> None:
    grow(page_size, lengths)
