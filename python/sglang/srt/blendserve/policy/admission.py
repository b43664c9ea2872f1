"""Memory admission by predicted peak (docs/scheduling.md, "Memory").

A request holds its prompt's KV from its prefill on and one more token with each decode step, until
it ends and frees all of it. Sort the running set by remaining length, longest first; when the
k-th of them ends, the k longest still run and each has grown by the k-th's remaining length. So
the largest memory the set will ever need is

    peak = max over k of  sum over i <= k of (kv_i + remaining_k)

Reserving this peak instead of every request's max_new_tokens fills the memory and still makes
retraction rare.

How long a request will run is not known but expected: where lengths vary, each counts as several
equal parts of itself, one per quantile of its remaining length. The sum over parts is then the
expected memory at each later time, and requests that started together are not taken to end
together. A single mean remaining length per request is the case of one part.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.compiled import INTEGERS, NUMBER, VECTOR, compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ROUNDING = 1.0
"""Tokens within which a bound on the peak does not decide: it is rounded differently. It changes no
answer, so it is no tuning."""


class PeakAdmission:
    """The predicted KV peak of a running set, and whether one more request fits under a limit."""

    def __init__(self, kv_tokens: ArrayLike, remaining_tokens: ArrayLike) -> None:
        """Start from m running requests.

        ``kv_tokens``: (m,) KV tokens each frees when it ends (a prefix shared with others is not
        among them). ``remaining_tokens``: (m,) decode tokens each is predicted to run for, or
        (m, q): equally likely ones.
        """
        held = np.asarray(kv_tokens, dtype=np.float64)
        remaining = np.ascontiguousarray(remaining_tokens, dtype=np.float64)
        self._parts = remaining.shape[1] if remaining.ndim == 2 else 1
        self._kv: Floats = held.copy()
        self._remaining: Floats = remaining.reshape(held.size, self._parts)
        self._joined: list[tuple[float, Floats]] = []
        self._slack = 0.0
        self._kept = 0.0
        self._changed = False  # since the parts were put in order
        self._sum = float(held.sum())
        self._sort()

    def _sort(self) -> None:
        """Order the parts of all requests, longest first."""
        parts = self._parts
        negative = -self._remaining.reshape(-1)
        longest_first = negative.argsort(kind="stable")
        # Ascending negative numbers, so that a place is found without negating the array again.
        self._negative, self._held, self._peaks, self._highest = _in_order(
            negative, longest_first, self._kv, parts
        )

    @property
    def kv_tokens(self) -> float:
        """KV tokens the set holds now."""
        return self._sum

    @property
    def peak(self) -> float:
        """Largest number of KV tokens the set is predicted to hold at once."""
        self._settle()
        return self._highest + self._kept

    def fits(self, kv_tokens: float, remaining_tokens: ArrayLike, limit: float) -> bool:
        """Whether the peak stays under ``limit`` while a request that joined would be there.

        A peak that comes when it has certainly ended is not its concern. Requests that have just
        joined count with all they will ever hold, at once, unless that decides.
        """
        ends = self._ascending(remaining_tokens)
        if self._changed:
            self._settle()
        limit -= self._kept
        room = limit - self._slack
        if self._highest + kv_tokens + float(ends[-1]) < room - _ROUNDING:
            return True  # even if all peaks met
        if self._peak_parts(kv_tokens, ends, room) <= room:
            return True
        if not self._joined:
            return False
        self._settle()
        return self._peak_parts(kv_tokens, ends, limit) <= limit

    def add(self, kv_tokens: float, remaining_tokens: ArrayLike) -> None:
        """Let a request join the set."""
        ends = self._ascending(remaining_tokens)
        self._joined.append((float(kv_tokens), ends))
        self._slack += kv_tokens + float(ends[-1])
        self._sum += kv_tokens

    def retain(self, member: int, kv_tokens: float) -> None:
        """``kv_tokens`` that ``member`` would free when it ends are held by others, too, now.

        ``member``: its number, in the order of joining. The tokens stay whatever ends. Negative
        tokens take this back.
        """
        before = self._kv.size
        if member < before:
            self._kv[member] -= kv_tokens
        else:
            held, ends = self._joined[member - before]
            self._joined[member - before] = held - kv_tokens, ends
        self._kept += kv_tokens
        self._changed = True

    def _settle(self) -> None:
        """Put the requests that have joined in their places."""
        if self._joined:
            self._kv = np.concatenate((self._kv, [kv for kv, _ in self._joined]))
            self._remaining = np.concatenate((self._remaining, [ends for _, ends in self._joined]))
            self._joined = []
            self._slack = 0.0
        elif not self._changed:
            return
        self._changed = False
        self._sort()

    def _ascending(self, remaining_tokens: ArrayLike) -> Floats:
        ends: Floats = np.ascontiguousarray(remaining_tokens, dtype=np.float64)  # at least (1,)
        return ends if ends.size == self._parts else np.full(self._parts, float(ends.mean()))

    def _peak_parts(self, kv_tokens: float, ends: Floats, limit: float = math.inf) -> float:
        """Largest memory at any time at which a part of the new request still runs.

        Once it is above ``limit`` it is not followed further.
        """
        return _peak(self._negative, self._held, self._peaks, kv_tokens, ends, limit)


class ReserveAll(PeakAdmission):
    """Reserves all that the running set will ever hold, as if no request ended before another.

    For the ablation `Tuning.reserve_all`.
    """

    def __init__(self, kv_tokens: ArrayLike, remaining_tokens: ArrayLike) -> None:
        """Start from m running requests; arguments as in `PeakAdmission`."""
        super().__init__(kv_tokens, remaining_tokens)
        self._reserved = self.kv_tokens + float(self._remaining.mean(axis=1).sum())

    def fits(self, kv_tokens: float, remaining_tokens: ArrayLike, limit: float) -> bool:
        """Whether everything fits under ``limit`` at once."""
        return self._reserved + kv_tokens + _mean(remaining_tokens) <= limit

    def add(self, kv_tokens: float, remaining_tokens: ArrayLike) -> None:
        """Let a request join the set."""
        super().add(kv_tokens, remaining_tokens)
        self._reserved += kv_tokens + _mean(remaining_tokens)


def _mean(remaining_tokens: ArrayLike) -> float:
    return float(np.asarray(remaining_tokens, dtype=np.float64).mean())


@compiled(f"Tuple(({VECTOR}, {VECTOR}, {VECTOR}, {NUMBER}))", VECTOR, INTEGERS, VECTOR, "int64")
def _in_order(
    negative: Floats, order: Ints, kv: Floats, parts: int
) -> tuple[Floats, Floats, Floats, float]:
    """Remaining lengths (negative), held tokens and peaks of all parts in ``order``, the highest.

    ``negative``: (m * parts,); ``kv``: (m,) tokens of whole requests.
    """
    n = negative.size
    sorted_, held, peaks = np.empty(n), np.empty(n), np.empty(n)
    total = highest = 0.0
    for place in range(n):
        at = order[place]
        total += kv[at // parts] / parts
        sorted_[place] = negative[at]
        held[place] = total
        peaks[place] = total - (place + 1) / parts * negative[at]
        highest = max(highest, peaks[place])
    return sorted_, held, peaks, highest


@compiled(NUMBER, VECTOR, VECTOR, VECTOR, NUMBER, VECTOR, NUMBER)
def _peak(
    negative: Floats, held: Floats, peaks: Floats, kv_tokens: float, ends: Floats, limit: float
) -> float:
    """Return the peak if a request of ``kv_tokens`` joined whose parts end at ``ends`` (q,)."""
    parts = ends.size
    highest, above = 0.0, negative.size
    for part in range(parts):  # in the order in which the parts end
        # Until this part ends, parts - part of the request are there.
        left = (parts - part) / parts
        end = ends[part]
        place = np.searchsorted(negative[:above], -end, side="right")
        before = held[place - 1] if place else 0.0
        highest = max(highest, before + place / parts * end + left * (kv_tokens + end))
        beside = 0.0
        for at in range(place, above):
            beside = max(beside, peaks[at] - left * negative[at])
        if place < above:
            highest = max(highest, beside + left * kv_tokens)
        if highest > limit:
            break
        above = place
    return highest
