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

from sglang.srt.blendserve.compiled import INTEGERS, NUMBER, TABLE, VECTOR, compiled
from sglang.srt.blendserve.plan.radix_sort import stable_argsort

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_NOTHING: Ints = np.zeros(0, dtype=np.int64)
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
        self._joined: list[tuple[float, Floats]] = []
        self._slack = 0.0
        self._kept = 0.0
        # Since the parts were put in order: whether what is held is another, and by how much more
        # the highest peak may be.
        self._changed = False
        self._more = 0.0
        self._sum = float(held.sum())
        # Negative, so that the longest come first in ascending order.
        self._unordered: Floats = -remaining.reshape(-1)
        self._arrange(stable_argsort(self._unordered), _NOTHING)

    def _arrange(self, order: Ints, joined: Ints) -> None:
        """Put the parts of all requests in order, longest first.

        ``order``, ``joined``: the parts that were there and those that have come, each in order.
        """
        self._order = np.empty(self._unordered.size, dtype=np.int64)
        self._in_order = np.empty((3, self._unordered.size))
        self._highest = _put_in_order(
            self._unordered, order, joined, self._kv, self._parts, self._order, self._in_order
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
        limit -= self._kept
        room = limit - self._slack
        if self._highest + self._more + kv_tokens + float(ends[-1]) < room - _ROUNDING:
            return True  # even if all peaks met
        if self._changed:
            self._settle()
            room = limit
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
        self._more += max(-kv_tokens, 0.0)

    def _settle(self) -> None:
        """Put the requests that have joined in their places."""
        joined = _NOTHING
        if self._joined:
            new = -np.concatenate([ends for _, ends in self._joined])
            joined = self._unordered.size + new.argsort(kind="stable")
            self._kv = np.concatenate((self._kv, [kv for kv, _ in self._joined]))
            self._unordered = np.concatenate((self._unordered, new))
            self._joined = []
            self._slack = 0.0
        elif not self._changed:
            return
        self._changed = False
        self._more = 0.0
        self._arrange(self._order, joined)

    def _ascending(self, remaining_tokens: ArrayLike) -> Floats:
        ends: Floats = np.asarray(remaining_tokens, dtype=np.float64, order="C")
        if ends.ndim == 1 and ends.size == self._parts:
            return ends
        return np.full(self._parts, float(ends.mean()))

    def _peak_parts(self, kv_tokens: float, ends: Floats, limit: float = math.inf) -> float:
        """Largest memory at any time at which a part of the new request still runs.

        Once it is above ``limit`` it is not followed further.
        """
        return _peak(self._in_order, kv_tokens, ends, limit)


class ReserveAll(PeakAdmission):
    """Reserves all that the running set will ever hold, as if no request ended before another.

    For the ablation `Tuning.reserve_all`.
    """

    def __init__(self, kv_tokens: ArrayLike, remaining_tokens: ArrayLike) -> None:
        """Start from m running requests; arguments as in `PeakAdmission`."""
        super().__init__(kv_tokens, remaining_tokens)
        parts = -self._unordered.reshape(-1, self._parts)
        self._reserved = self.kv_tokens + float(parts.mean(axis=1).sum())

    def fits(self, kv_tokens: float, remaining_tokens: ArrayLike, limit: float) -> bool:
        """Whether everything fits under ``limit`` at once."""
        return self._reserved + kv_tokens + _mean(remaining_tokens) <= limit

    def add(self, kv_tokens: float, remaining_tokens: ArrayLike) -> None:
        """Let a request join the set."""
        super().add(kv_tokens, remaining_tokens)
        self._reserved += kv_tokens + _mean(remaining_tokens)


def _mean(remaining_tokens: ArrayLike) -> float:
    return float(np.asarray(remaining_tokens, dtype=np.float64).mean())


@compiled(NUMBER, VECTOR, INTEGERS, INTEGERS, VECTOR, "int64", INTEGERS, TABLE)
def _put_in_order(
    negative: Floats,
    order: Ints,
    joined: Ints,
    kv: Floats,
    parts: int,
    merged: Ints,
    in_order: Floats,
) -> float:
    """Put all parts in order: fill ``merged`` and ``in_order`` and return the highest peak.

    ``negative``: (m * parts,) their remaining lengths, negative. ``order``, ``joined``: the parts
    in two ascending runs, of which the first goes before the second where they are equal. ``kv``:
    (m,) tokens of whole requests. ``merged``: (m * parts,) becomes the order, ``in_order``:
    (3, m * parts) remaining lengths (negative), held tokens and peaks in that order.

    Arrays that are made in compiled code would cost their caller a microsecond each.
    """
    n = negative.size
    total = highest = 0.0
    old = new = 0
    for place in range(n):
        if old < order.size and (
            new == joined.size or negative[order[old]] <= negative[joined[new]]
        ):
            at = order[old]
            old += 1
        else:
            at = joined[new]
            new += 1
        merged[place] = at
        total += kv[at // parts] / parts
        peak = total - (place + 1) / parts * negative[at]
        in_order[0, place], in_order[1, place], in_order[2, place] = negative[at], total, peak
        highest = max(highest, peak)
    return highest


@compiled(NUMBER, TABLE, NUMBER, VECTOR, NUMBER)
def _peak(in_order: Floats, kv_tokens: float, ends: Floats, limit: float) -> float:
    """Return the peak if a request of ``kv_tokens`` joined whose parts end at ``ends`` (q,).

    ``in_order``: (3, m * parts) as `_put_in_order` makes it.
    """
    negative, held, peaks = in_order[0], in_order[1], in_order[2]
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
