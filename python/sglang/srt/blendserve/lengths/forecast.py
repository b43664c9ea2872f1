"""The forecast: how long each request may still run, as equally likely remaining lengths.

For requests like many that have finished this is what `LengthEstimator` has learned. For a kind of
request (same ``max_tokens``, in half octaves) of which most that were started still run, nothing
has been learned yet but that they run: the short ones end first, and judging by them floods the
memory. Their lengths are taken as anything between what they have lived and their cap, evenly on
a logarithmic scale, and the estimator is believed as the share of them that has finished grows.
"""

from __future__ import annotations

from copy import copy

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.lengths.estimator import LengthEstimator

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LEVELS: Floats = (np.arange(4) + 0.5) / 4
"""Quantiles that stand for an unknown length: equally likely parts of a request.
Unproven."""

_BELIEVED = 0.5
"""Share of the started requests of a kind that must have finished for the estimator to stand
alone. Unproven."""
_LEAST_CAP = 256.0
"""What an unknown kind may at least reach where no cap is set, as a multiple of what it lived.
Unproven."""


class LengthForecast:
    """Expected lengths of n requests for planning, and their spread for memory admission."""

    def __init__(
        self, lengths: LengthEstimator, max_tokens: Ints, known: NDArray[np.bool_]
    ) -> None:
        """``max_tokens``: (n,) caps, tokens (below 1: none); ``known``: (n,) exact lengths."""
        self.lengths = lengths
        capped = max_tokens > 0
        self._cap = np.where(capped, max_tokens, np.inf).astype(np.float64)
        kinds = np.where(capped, np.round(2 * np.log2(np.maximum(max_tokens, 1))), -1)
        kinds = np.where(known, -2, kinds)
        names, self._kind = np.unique(kinds, return_inverse=True)
        # As lists, too: one request at a time is looked up faster there.
        self._kinds: list[int] = self._kind.tolist()
        self._exact_kind = names == -2
        # What earlier requests have taught of a kind stays known when they are forgotten.
        before = lengths.finished_before(np.exp2(np.maximum(names, 0) / 2))
        self._started: list[float] = np.where(names >= 0, before, 0.0).tolist()
        self._finished = [*self._started]
        self._belief = np.zeros(names.size)
        self._note_doubt()
        self._fresh: Floats = np.zeros((0, LEVELS.size))

    def copy(self, lengths: LengthEstimator) -> LengthForecast:
        """Return a copy over ``lengths`` that learns on its own."""
        other = copy(self)
        other.lengths = lengths
        other._started, other._finished = [*self._started], [*self._finished]
        return other

    def started(self, request: int, count: int = 1) -> None:
        """``request`` was handed to the engine (``count`` -1: and given back untouched)."""
        self._started[self._kinds[request]] += count

    def finished(self, request: int) -> None:
        """``request`` has ended by itself."""
        self._finished[self._kinds[request]] += 1

    def renew(self, running: ArrayLike, generated: ArrayLike) -> Floats:
        """(n,) expected total lengths from all that is seen; see `LengthEstimator.estimate`."""
        estimate = self.lengths.estimate(running, generated)
        share = np.array(self._finished) / np.maximum(self._started, 1)
        self._belief = np.minimum(share / _BELIEVED, 1.0)
        self._note_doubt()
        none = np.zeros(estimate.size)
        self._fresh = self.remaining(np.arange(estimate.size), none)
        expected = self._fresh.mean(axis=1)
        return np.where(self._unsure, np.maximum(estimate, expected), estimate)

    def _note_doubt(self) -> None:
        """Find out from what is believed of the kinds how little is known, of each of them."""
        self._doubt = np.where(self._exact_kind, 0.0, 1 - self._belief)
        self._doubts: list[float] = self._doubt.tolist()
        self._unsure = (self._doubt > 0)[self._kind]

    def remaining(self, requests: ArrayLike, generated: ArrayLike) -> Floats:
        """(m, q) equally likely remaining tokens, at least 1, of ``requests`` (m,).

        ``generated``: (m,) tokens each has so far. The q columns are the quantiles `LEVELS`.
        """
        index = np.asarray(requests, dtype=np.int64)
        lived = np.asarray(generated, dtype=np.float64)
        learned = self.lengths.remaining_quantiles(index, lived, LEVELS)
        unsure = np.flatnonzero(self._unsure[index])
        if unsure.size:
            since = np.maximum(lived[unsure], 1.0)
            cap = np.minimum(self._cap[index[unsure]], _LEAST_CAP * since.clip(256.0))
            ratio = np.maximum(cap / since, 1.0)
            wide = since[:, None] * ratio[:, None] ** LEVELS - lived[unsure, None]
            weight = self._belief[self._kind[index[unsure]]][:, None]
            mixed = np.log(learned[unsure]) * weight + np.log(wide.clip(1.0)) * (1 - weight)
            learned[unsure] = np.exp(mixed)
        return learned

    def doubt(self, requests: ArrayLike) -> Floats:
        """(m,) how little is known of the kinds of ``requests`` (m,), from 0 to 1."""
        index = np.asarray(requests, dtype=np.int64)
        return np.asarray(self._doubt[self._kind[index]])

    def doubt_of(self, request: int) -> float:
        """How little is known of the kind of ``request``, from 0 to 1."""
        return self._doubts[self._kinds[request]]

    def cap(self, requests: ArrayLike) -> Floats:
        """(m,) output tokens that ``requests`` (m,) cannot exceed; infinite where none are set."""
        return np.asarray(self._cap[np.asarray(requests, dtype=np.int64)])

    def fresh(self, request: int) -> Floats:
        """(q,) equally likely lengths of a request that has not begun, at the last `renew`."""
        row: Floats = self._fresh[request]
        return row

    def __len__(self) -> int:
        return int(self._fresh.shape[0])
