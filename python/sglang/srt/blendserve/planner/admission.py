"""Memory admission by predicted peak (DESIGN.md, "Scheduling" (3)).

A request holds its prompt's KV from its prefill on and one more token with each decode step, until
it ends and frees all of it. Sort the running set by remaining length, longest first; when the
k-th of them ends, the k longest still run and each has grown by the k-th's remaining length. So
the largest memory the set will ever need is

    peak = max over k of  sum over i <= k of (kv_i + remaining_k)

Reserving this peak instead of every request's max_new_tokens fills the memory and still makes
retraction rare.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class PeakAdmission:
    """The predicted KV peak of a running set, and whether one more request fits under a limit."""

    def __init__(self, kv_tokens: ArrayLike, remaining_tokens: ArrayLike) -> None:
        """Start from m running requests.

        ``kv_tokens``: (m,) KV tokens each frees when it ends (a prefix shared with others is not
        among them). ``remaining_tokens``: (m,) decode tokens each is predicted to run for.
        """
        remaining = np.asarray(remaining_tokens, dtype=np.float64)
        longest_first = np.argsort(-remaining, kind="stable")
        self._remaining: Floats = remaining[longest_first]
        self._held: Floats = np.cumsum(np.asarray(kv_tokens, dtype=np.float64)[longest_first])

    def __len__(self) -> int:
        return self._remaining.size

    @property
    def kv_tokens(self) -> float:
        """KV tokens the set holds now."""
        return float(self._held[-1]) if self._held.size else 0.0

    @property
    def peak(self) -> float:
        """Largest number of KV tokens the set is predicted to hold at once."""
        return float(self._peaks().max(initial=0.0))

    def peak_with(self, kv_tokens: float, remaining_tokens: float) -> float:
        """The peak if a request of ``kv_tokens`` that runs for ``remaining_tokens`` joined."""
        place = self._place(remaining_tokens)
        before = float(self._held[place - 1]) if place else 0.0
        own = before + kv_tokens + (place + 1) * remaining_tokens
        peaks = self._peaks()
        # Those that end no later than the new one also run beside it.
        beside = (peaks[place:] + self._remaining[place:]).max(initial=0.0) + kv_tokens
        return float(max(peaks[:place].max(initial=0.0), own, beside))

    def add(self, kv_tokens: float, remaining_tokens: float) -> None:
        """Let a request join the set."""
        place = self._place(remaining_tokens)
        before = self._held[place - 1] if place else 0.0
        self._remaining = np.insert(self._remaining, place, remaining_tokens)
        held = np.insert(self._held, place, before)
        held[place:] += kv_tokens
        self._held = held

    def _place(self, remaining_tokens: float) -> int:
        return int(np.searchsorted(-self._remaining, -remaining_tokens, side="right"))

    def _peaks(self) -> Floats:
        return self._held + np.arange(1, self._remaining.size + 1) * self._remaining
