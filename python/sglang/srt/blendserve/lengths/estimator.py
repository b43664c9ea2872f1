"""Output-length estimation: what the scheduler expects of lengths it cannot know.

The paper (section 5.1) runs a sample of the requests first and gives every subtree of the prefix
tree the mean of its sampled ones. Here all requests that have finished count, at any time, and

- estimates of small groups are drawn towards those of the larger ones around them, as far as the
  data ask for it (`lengths.fit`), over job, max_tokens, subtrees, prompt length and order of
  arrival (`lengths.groups`);
- running requests count as having lived this long (`lengths.shape`), since the first to finish are
  the short ones;
- known lengths are exact, and ``max_tokens`` is a cap and a feature, never a forecast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import copy

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang.srt.blendserve.lengths.fit import LengthFit, fit_lengths
from sglang.srt.blendserve.lengths.groups import LengthGroups
from sglang.srt.blendserve.lengths.prior import LengthPrior
from sglang.srt.blendserve.lengths.shape import LengthShape
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ROUNDS = 2
"""Passes of guessing the running requests' lengths and fitting again (expectation maximisation).
Unproven."""
_CLASS_SIZE = 100
"""Finished requests that a class of its own takes. Unproven."""
_CLASSES_PER_CELL = 8
"""Most classes in a cell, by mean length. Unproven."""


class LengthEstimator:
    """Expected output lengths of n requests; learns from each one that finishes."""

    def __init__(
        self,
        prompt_tokens: ArrayLike,
        max_tokens: ArrayLike,
        known: ArrayLike,
        tree: PrefixTree | None = None,
        job: ArrayLike | None = None,
        prior: LengthPrior | None = None,
        *,
        context_length: int = 1 << 20,
    ) -> None:
        """Estimator for n requests, all arrays of shape (n,).

        ``max_tokens``: cap on the output, tokens; where it is below 1 the model's
        ``context_length`` less the prompt is the cap. ``known``: whether the output is exactly
        that long. ``tree``: the prefix tree over the same requests. ``job``: which requests
        belong together. ``prior``: what earlier requests taught. Raises ValueError if the shapes
        do not fit.
        """
        self._prompt: Ints = np.asarray(prompt_tokens, dtype=np.int64)
        self._n = self._prompt.size
        limit: Ints = np.asarray(max_tokens, dtype=np.int64)
        self._known: Bools = np.asarray(known, dtype=np.bool_)
        jobs: Ints = np.zeros_like(limit) if job is None else np.asarray(job, dtype=np.int64)
        for name, values in (
            ("prompt_tokens", self._prompt),
            ("max_tokens", limit),
            ("known", self._known),
            ("job", jobs),
        ):
            _check_shape(name, values, self._n)
        if tree is not None and tree.requests != self._n:
            raise ValueError(f"tree has {tree.requests} requests, prompt_tokens has {self._n}")
        self._limit = np.where(limit > 0, limit, np.maximum(context_length - self._prompt, 1))
        self._prior = prior or LengthPrior.empty()
        self._groups = LengthGroups.build(self._prompt, self._limit, 2 * jobs + self._known, tree)
        # Bounds of every total: equal where the length is known or seen.
        self._upper = self._limit.astype(np.float64)
        self._lower = np.where(self._known, self._upper, 1.0)
        self._output = np.full(self._n, np.nan)
        self._finished: list[int] = []
        self._start = self._prior.predict(self._prompt, self._limit)
        self._mean = self._start
        empty, none = np.zeros(0), np.zeros(0, dtype=np.int64)
        self._boundaries = np.zeros(1)
        self._shape = LengthShape.fit(1, empty, none, empty, none)
        self._finish_fit()

    @property
    def prompt_tokens(self) -> Ints:
        """(n,) prompt tokens of every request."""
        return self._prompt

    def copy(self) -> LengthEstimator:
        """Return a copy that learns on its own; what neither changes is shared."""
        other = copy(self)
        other._lower, other._upper = self._lower.copy(), self._upper.copy()
        other._output, other._finished = self._output.copy(), self._finished.copy()
        return other

    def observe(self, request: int, output_tokens: int) -> None:
        """``request`` has finished with ``output_tokens`` tokens (none counts as one).

        Its own length is exact from now on; what it says of others counts from the next
        `estimate`. Raises IndexError or ValueError for a request or length that cannot be.
        """
        if not 0 <= request < self._n:
            raise IndexError(f"request {request} of {self._n}")
        if output_tokens < 0:
            raise ValueError(f"output_tokens must be at least 0, got {output_tokens}")
        length = float(max(output_tokens, 1))
        if not self._known[request] and math.isnan(self._output[request]):
            self._finished.append(request)
        self._output[request] = self._lower[request] = self._upper[request] = length

    def estimate(
        self, running: ArrayLike | None = None, generated: ArrayLike | None = None
    ) -> Floats:
        """(n,) expected total output tokens of every request, from all that is seen.

        ``running``: (m,) distinct requests that run; ``generated``: (m,) tokens each has so far.
        Between 1 and the cap; exact for known and finished requests; above ``generated`` for
        running ones. Takes some 100 ms for 100,000 requests.
        """
        requests, lived = self._running(running, generated)
        self._fit(requests, lived)
        expected = np.clip(self._mean, self._lower, self._upper)
        expected[requests] = lived + self.remaining(requests, lived)
        return expected

    def remaining(self, requests: ArrayLike, generated: ArrayLike) -> Floats:
        """(m,) expected further tokens, at least 1, of running ``requests`` (m,).

        ``generated``: (m,) tokens each has so far. Uses the last `estimate`; microseconds.
        """
        index = np.asarray(requests, dtype=np.int64)
        lived = np.asarray(generated, dtype=np.float64)
        total = self._shape.expected_total(self._class[index], self._unit[index], lived)
        total = np.minimum(np.maximum(total, self._lower[index]), self._upper[index])
        return np.maximum(total - lived, 1.0)

    def remaining_quantiles(
        self, requests: ArrayLike, generated: ArrayLike, levels: ArrayLike
    ) -> Floats:
        """(m, q) quantiles of the further tokens of running ``requests`` (m,), at least 1.

        ``generated``: (m,) tokens each has so far; ``levels``: (q,) quantiles, 0 to 1. `remaining`
        is the mean of the same distribution.
        """
        index = np.asarray(requests, dtype=np.int64)
        return self._shape.quantiles_left(
            index,
            np.asarray(generated, dtype=np.float64),
            np.asarray(levels, dtype=np.float64),
            classes=self._class[index],  # which sees to it that there are such requests
            unit=self._unit,
            lower=self._lower,
            upper=self._upper,
        )

    def kv_reads(self, expected: Floats) -> Floats:
        """(n,) expected KV tokens read in decoding, p E[d] + E[d^2] / 2 (paper's Mem).

        ``expected``: (n,) from `estimate`. E[d^2] is larger than E[d]^2 where lengths vary, up
        to several times: with the mean alone, memory-bound requests look too cheap.
        """
        exact = self._lower == self._upper
        square = np.where(exact, 1.0, self._shape.square[self._class]) * expected**2
        # No more than if every such request ended at once or at its cap.
        square = np.minimum(square, expected * self._upper)
        return np.asarray(self._prompt * expected + square / 2)

    def finished_before(self, max_tokens: Floats) -> Floats:
        """(k,) requests of a cap of about ``max_tokens`` (k,) that had finished when this began."""
        return self._prior.finished(np.round(max_tokens).astype(np.int64))

    def prior(self, besides: Iterable[int] = ()) -> LengthPrior:
        """Return what the lengths seen teach about later requests: a few numbers per kind.

        ``besides``: requests that stay and go on teaching it themselves.
        """
        seen = np.setdiff1d(
            np.array(self._finished, dtype=np.int64), np.array([*besides], dtype=np.int64)
        )
        return self._prior.updated(self._prompt[seen], self._limit[seen], self._output[seen])

    def _running(
        self, running: ArrayLike | None, generated: ArrayLike | None
    ) -> tuple[Ints, Floats]:
        requests: Ints = np.asarray([] if running is None else running, dtype=np.int64)
        lived: Floats = np.asarray([] if generated is None else generated, dtype=np.float64)
        _check_shape("running", requests, requests.size)
        _check_shape("generated", lived, requests.size)
        return requests, np.maximum(lived, 0.0)

    def _fit(self, running: Ints, lived: Floats) -> None:
        """Fit means and shape to the finished and the ``running`` requests (m,)."""
        open_ended = self._lower[running] < self._upper[running]
        running, lived = running[open_ended], lived[open_ended]
        finished = np.array(self._finished, dtype=np.int64)
        samples = np.concatenate((finished, running))
        if samples.size == 0:
            return
        seen = self._output[finished]
        if finished.size:
            # First the means of what has finished, although those are the short ones: only the
            # survival curves need them, and curves know the running ones whatever the scale.
            fit = fit_lengths(self._groups, self._start, finished, seen)
            self._use(fit, finished, running, lived)
        for _ in range(_ROUNDS if running.size else 0):
            guess = self._shape.expected_total(self._class[running], self._mean[running], lived)
            guess = np.clip(guess, lived + 1, np.maximum(self._upper[running], lived + 1))
            lengths = np.concatenate((seen, guess))
            fit = fit_lengths(self._groups, self._start, samples, lengths)
            self._use(fit, finished, running, lived)
        self._finish_fit()

    def _use(self, fit: LengthFit, finished: Ints, running: Ints, lived: Floats) -> None:
        """Take over the means and fit the shape of the lengths around them."""
        self._mean = np.minimum(fit.mean, self._upper)
        expected = fit.left_out[: finished.size]
        cell = self._groups.cell
        self._boundaries = _class_boundaries(cell[finished], expected, self._groups.cells)
        self._class = self._classify(cell, self._mean)
        self._shape = LengthShape.fit(
            self._boundaries.size,
            self._output[finished] / expected,
            self._classify(cell[finished], expected),
            lived / self._mean[running],
            self._class[running],
        )

    def _finish_fit(self) -> None:
        self._class = self._classify(self._groups.cell, self._mean)
        self._unit = self._mean / self._shape.mean[self._class]

    def _classify(self, cell: Ints, mean: Floats) -> Ints:
        found: Ints = np.searchsorted(self._boundaries, _class_key(cell, mean), side="right") - 1
        return np.maximum(found, 0)


def _class_key(cell: Ints, mean: Floats) -> Floats:
    """A number that sorts by cell, then by mean length."""
    return np.asarray(cell * 64.0 + np.clip(np.log2(mean) + 1, 0, 63))


def _class_boundaries(cell: Ints, mean: Floats, cells: int) -> Floats:
    """(classes,) lower ends of the classes: cells cut at quantiles of their means."""
    key = np.sort(_class_key(cell, mean))
    counts = np.bincount(cell, minlength=cells)
    pieces = np.clip(counts // _CLASS_SIZE, 1, _CLASSES_PER_CELL)
    first = np.cumsum(counts) - counts
    starts = [np.arange(cells) * 64.0]
    for piece in range(1, _CLASSES_PER_CELL):
        cut = np.flatnonzero(pieces > piece)
        starts.append(key[first[cut] + counts[cut] * piece // pieces[cut]])
    return np.unique(np.concatenate(starts))


def _check_shape(name: str, values: Ints | Floats | Bools, n: int) -> None:
    if values.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {values.shape}")
