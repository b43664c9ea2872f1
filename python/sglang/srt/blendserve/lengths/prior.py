"""What is remembered of output lengths when the requests themselves are forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.lengths.fit import group_sums

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DEFAULT_MEAN = 256.0
"""Expected output tokens before anything is known; max_tokens only caps it. Unproven."""
_SHRINK = 16.0
"""Requests that the mean of all others counts for, in each cell. Unproven."""
_FADE = 0.5
"""Weight of what an older prior said when a newer one takes it over. Unproven."""
_PER_OCTAVE = 2
"""Cells for each doubling of a length. Unproven."""


@dataclass(frozen=True, slots=True)
class LengthPrior:
    """Finished requests counted by prompt length and ``max_tokens``, in half octaves."""

    cells: Ints
    """(c,) distinct feature cells, ascending."""
    count: Floats
    """(c,) finished requests in each cell; fades as newer ones come."""
    total: Floats
    """(c,) output tokens of the finished requests in each cell."""

    @classmethod
    def empty(cls) -> LengthPrior:
        """The prior of a first start: nothing is known yet."""
        return cls(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))

    def updated(self, prompt_tokens: Ints, max_tokens: Ints, lengths: Floats) -> LengthPrior:
        """This prior, faded where newer ones come, and s finished requests; all arguments (s,),
        tokens."""
        if lengths.size == 0:
            return self
        keys = np.concatenate((self.cells, _cell(prompt_tokens, max_tokens)))
        cells, place = np.unique(keys, return_inverse=True)
        # What a cell has taught fades as newer requests of that cell come: a rare kind of long
        # outputs is not forgotten because many short ones have ended.
        newer = np.zeros(cells.size, dtype=np.bool_)
        newer[place[self.cells.size :]] = True
        kept = np.where(newer[place[: self.cells.size]], _FADE, 1.0)
        count = np.concatenate((self.count * kept, np.ones(lengths.size)))
        total = np.concatenate((self.total * kept, lengths))
        return LengthPrior(
            cells, group_sums(place, count, cells.size), group_sums(place, total, cells.size)
        )

    def finished(self, max_tokens: Ints) -> Floats:
        """(k,) finished requests of a cap of about ``max_tokens`` (k,), to half an octave."""
        wanted = _cell(np.ones_like(max_tokens), max_tokens) // _STRIDE
        caps, place = np.unique(self.cells // _STRIDE, return_inverse=True)
        if not caps.size:
            return np.zeros(wanted.shape)
        count = group_sums(place, self.count, caps.size)
        at = np.minimum(np.searchsorted(caps, wanted), caps.size - 1)
        return np.where(caps[at] == wanted, count[at], 0.0)

    def predict(self, prompt_tokens: Ints, max_tokens: Ints) -> Floats:
        """(n,) expected output tokens from prompt length and ``max_tokens`` (n,), shrunk."""
        cap = np.maximum(max_tokens, 1).astype(np.float64)
        if self.cells.size == 0:
            return np.minimum(DEFAULT_MEAN, cap)
        wanted = _cell(prompt_tokens, max_tokens)
        mean = np.full(wanted.shape, self.total.sum() / self.count.sum())
        for key, cells in (
            (wanted % _STRIDE, self.cells % _STRIDE),
            (wanted // _STRIDE, self.cells // _STRIDE),
            (wanted, self.cells),
        ):
            known, place = np.unique(cells, return_inverse=True)
            count = group_sums(place, self.count, known.size)
            total = group_sums(place, self.total, known.size)
            at = np.minimum(np.searchsorted(known, key), known.size - 1)
            seen = known[at] == key
            mean = np.where(seen, (total[at] + _SHRINK * mean) / (count[at] + _SHRINK), mean)
        return np.asarray(np.minimum(np.maximum(mean, 1.0), cap))


_STRIDE = 256
"""More than the half octaves of any prompt length, so that two numbers make one cell."""


def _cell(prompt_tokens: Ints, max_tokens: Ints) -> Ints:
    """(n,) feature cell: half octave of ``max_tokens``, then of the prompt length."""
    prompt = np.round(np.log2(np.maximum(prompt_tokens, 1)) * _PER_OCTAVE).astype(np.int64)
    cap = np.round(np.log2(np.maximum(max_tokens, 1)) * _PER_OCTAVE).astype(np.int64)
    return np.asarray(cap * _STRIDE + prompt)
