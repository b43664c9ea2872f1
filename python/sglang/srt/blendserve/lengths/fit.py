"""Mean output lengths by shrinkage over the levels of `LengthGroups` (empirical Bayes).

Each level multiplies the means of all requests of a group by one factor. A group with c samples
of lengths d, of which the coarser levels expect m, gets

    1 + z (sum d / sum m - 1),      z = c / (c + k)

the credibility estimate of Buehlmann (1967): a few samples say little and leave the group near
what the coarser levels expect. The strength k is the one that predicts each sample best from all
the others (leave one out), where it may in each cell; a level that predicts no better than
without it, by one standard error, is left out. So a level that says nothing does little harm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.lengths.groups import LengthGroups, Level

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Strengths k that are tried: how many samples a group needs to be believed half. Unproven."""
_JUDGES = 8192
"""Samples that the choice of k looks at; more only cost time. Unproven."""
_SMALLEST_MEAN = 0.5
"""Least mean length, tokens: keeps logarithms and quotients finite."""


@dataclass(frozen=True, slots=True)
class LengthFit:
    """Fitted means, tokens."""

    mean: Floats
    """(n,) expected length of each request."""
    left_out: Floats
    """(s,) expected length of each sample, from all the other samples."""


def fit_lengths(groups: LengthGroups, start: Floats, samples: Ints, lengths: Floats) -> LengthFit:
    """Fit the means of n requests to s samples.

    ``start``: (n,) means to begin with, positive, right up to one common factor. ``samples``:
    (s,) distinct requests, s > 0; ``lengths``: (s,) their output tokens, seen or, for running
    requests, expected: the error that judges the levels is linear in the length, so that an
    expected length gives the expected error.
    """
    expected = start[samples]
    total, exposure = float(lengths.sum()), float(expected.sum())
    mean = np.maximum(start * (total / exposure), _SMALLEST_MEAN)
    left_out = expected * _ratio(total - lengths, exposure - expected, total / exposure)
    left_out = np.maximum(left_out, _SMALLEST_MEAN)
    for level in groups.levels:
        evidence = _Evidence(level, groups, samples, lengths, left_out)
        k = evidence.best_strength()
        if np.isfinite(k).any():
            mean = np.maximum(mean * evidence.factors(k), _SMALLEST_MEAN)
            left_out = evidence.left_out(k[groups.cell[samples]])
    return LengthFit(mean, left_out)


class _Evidence:
    """What the samples say about the groups of one level."""

    def __init__(
        self, level: Level, groups: LengthGroups, samples: Ints, lengths: Floats, expected: Floats
    ) -> None:
        self.level = level
        self.groups = groups
        self.samples = samples
        self.lengths = lengths
        self.expected = expected
        self.group = level.group[samples]
        self.count = np.bincount(self.group, minlength=level.groups)
        self.total = group_sums(self.group, lengths, level.groups)
        self.exposure = group_sums(self.group, expected, level.groups)

    def factors(self, k: Floats) -> Floats:
        """(n,) factor of each request's mean, for strengths k (cells,)."""
        cell = np.zeros(self.level.groups, dtype=np.int64)
        # Of groups that span cells any one will do: their level has one strength for all.
        cell[self.level.group] = self.groups.cell
        ratio = _ratio(self.total, self.exposure, 1.0)
        by_group = 1 + self.count / (self.count + k[cell]) * (ratio - 1)
        return np.asarray(by_group[self.level.group])

    def left_out(self, k: Floats | float, part: slice | Ints = slice(None)) -> Floats:
        """Expected length of each sample of ``part`` from the others of its group, for its k."""
        group, expected = self.group[part], self.expected[part]
        count = self.count[group] - 1
        ratio = _ratio(self.total[group] - self.lengths[part], self.exposure[group] - expected, 1.0)
        return np.maximum(expected * (1 + count / (count + k) * (ratio - 1)), _SMALLEST_MEAN)

    def best_strength(self) -> Floats:
        """(cells,) the k with the smallest leave-one-out error; infinite if none does.

        The error is the Poisson deviance: least at the true mean, as the squared error is, but
        less at the mercy of a few very long outputs.
        """
        size = self.samples.size
        part = np.linspace(0, size - 1, min(size, _JUDGES)).astype(np.int64)
        length, before = self.lengths[part], self.expected[part]
        cells = self.groups.cells
        cell = self.groups.cell[self.samples[part]]
        if not self.level.by_cell:
            cells, cell = 1, np.zeros_like(part)
        best, least = np.full(cells, np.inf), np.zeros(cells)
        for k in _STRENGTHS:
            after = self.left_out(k, part)
            loss = after - before - length * np.log(after / before)
            score = group_sums(cell, loss, cells)
            score += np.sqrt(group_sums(cell, loss * loss, cells))
            better = score < least
            best[better], least[better] = k, score[better]
        return best if self.level.by_cell else np.full(self.groups.cells, best[0])


def group_sums(group: Ints, values: Floats, groups: int) -> Floats:
    """(groups,) sum of the values (s,) of each group (s,)."""
    # bincount of nothing counts in integers.
    return np.asarray(np.bincount(group, values, groups), dtype=np.float64)


def _ratio(total: Floats, exposure: Floats, otherwise: float) -> Floats:
    """total / exposure, at least 0, where there is an exposure."""
    ratio = np.full(total.shape, otherwise)
    # What is left after taking one sample out of a sum can be rounding noise.
    np.divide(total, exposure, out=ratio, where=exposure > _SMALLEST_MEAN / 2)
    return np.asarray(np.maximum(ratio, 0.0))
