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

from sglang.srt.blendserve.compiled import INTEGERS, NUMBER, TABLE, VECTOR, compiled
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


@dataclass(frozen=True, slots=True)
class _Others:
    """The samples of a group without one of them, for each of s samples; arrays (s,)."""

    expected: Floats
    """Expected length of the sample by the coarser levels."""
    count: Floats
    """How many others there are."""
    excess: Floats
    """By what part of their expected lengths the others are longer."""


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
        self.count, self.total, self.exposure = self.sums = np.zeros((3, level.groups))
        _add_up(self.group, lengths, expected, self.sums)

    def factors(self, k: Floats) -> Floats:
        """(n,) factor of each request's mean, for strengths k (cells,)."""
        ratio = _ratio(self.total, self.exposure, 1.0)
        by_group = 1 + self.count / (self.count + k[self.level.cell]) * (ratio - 1)
        return np.asarray(by_group[self.level.group])

    def left_out(self, k: Floats) -> Floats:
        """(s,) expected length of each sample from the others of its group, for its k (s,)."""
        found = np.empty(self.samples.size)
        _leave_out(self.group, self.lengths, self.expected, self.sums, k, found)
        return found

    def _others(self, part: Ints) -> _Others:
        """What the other samples of its group say about each sample of ``part``."""
        group, expected = self.group[part], self.expected[part]
        ratio = _ratio(self.total[group] - self.lengths[part], self.exposure[group] - expected, 1.0)
        return _Others(expected, self.count[group] - 1, ratio - 1)

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
        others = self._others(part)
        after, ratio = np.empty((2, part.size))
        for k in _STRENGTHS:
            _expect(others.expected, others.count, others.excess, k, after, ratio)
            losses, squares = np.zeros((2, cells))
            _add_losses(cell, length, before, after, np.log(ratio), losses, squares)
            score = losses + np.sqrt(squares)
            better = score < least
            best[better], least[better] = k, score[better]
        return best if self.level.by_cell else np.full(self.groups.cells, best[0])


@compiled("void", INTEGERS, VECTOR, VECTOR, TABLE)
def _add_up(group: Ints, lengths: Floats, expected: Floats, sums: Floats) -> None:
    """Add to ``sums`` (3, groups) the samples of each group: how many, lengths, expectations."""
    for sample in range(group.size):
        sums[0, group[sample]] += 1.0
        sums[1, group[sample]] += lengths[sample]
        sums[2, group[sample]] += expected[sample]


@compiled("void", INTEGERS, VECTOR, VECTOR, TABLE, VECTOR, VECTOR)
def _leave_out(
    group: Ints, lengths: Floats, expected: Floats, sums: Floats, k: Floats, found: Floats
) -> None:
    """Fill ``found`` (s,) as `_Evidence.left_out` returns it."""
    for sample in range(group.size):
        at, before = group[sample], expected[sample]
        count, exposure = sums[0, at] - 1, sums[2, at] - before
        ratio = 1.0
        if exposure > _SMALLEST_MEAN / 2:
            ratio = (sums[1, at] - lengths[sample]) / exposure
        factor = 1 + count / (count + k[sample]) * (max(ratio, 0.0) - 1)
        found[sample] = max(before * factor, _SMALLEST_MEAN)


@compiled("void", VECTOR, VECTOR, VECTOR, NUMBER, VECTOR, VECTOR)
def _expect(
    expected: Floats, count: Floats, excess: Floats, k: float, after: Floats, ratio: Floats
) -> None:
    """Fill ``after`` with what the others (`_Others`) let expect for the strength ``k``, and
    ``ratio`` with that over what the coarser levels do."""
    for sample in range(expected.size):
        factor = 1 + count[sample] / (count[sample] + k) * excess[sample]
        after[sample] = max(expected[sample] * factor, _SMALLEST_MEAN)
        ratio[sample] = after[sample] / expected[sample]


@compiled("void", INTEGERS, VECTOR, VECTOR, VECTOR, VECTOR, VECTOR, VECTOR)
def _add_losses(
    cell: Ints,
    length: Floats,
    before: Floats,
    after: Floats,
    logs: Floats,
    losses: Floats,
    squares: Floats,
) -> None:
    """Add how much less each sample's deviance is, and its square, to the sums (cells,) of its
    cell; ``logs``: of ``after`` over ``before``."""
    for sample in range(cell.size):
        loss = after[sample] - before[sample] - length[sample] * logs[sample]
        losses[cell[sample]] += loss
        squares[cell[sample]] += loss * loss


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
