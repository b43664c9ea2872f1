"""Mean output lengths by shrinkage over the levels of `LengthGroups` (empirical Bayes).

Each level multiplies the mean of all requests of a group by one factor. A group of c requests
with lengths d, of which the coarser levels expect m, gets

    1 + z (sum d / sum m - 1),      z = c / (c + k)

the credibility estimate of Buehlmann (1967): few requests say little and stay near what the
coarser levels say. The strength k is the one that predicts each finished request best from all
others (leave one out), separately in each cell; a level that predicts no better than by chance
is left out, so what a level does not know does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.planner.length_groups import Level, LengthGroups

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_STRENGTHS = (4.0, 16.0, 64.0, 256.0)
_JUDGES = 8192
"""Finished requests that the choice of k looks at; more only cost time."""
_SMALLEST_MEAN = 0.5


@dataclass(frozen=True, slots=True)
class LengthFit:
    """Fitted means."""

    mean: Floats
    """(n,) expected output tokens of each request."""
    left_out: Floats
    """(s,) expected output tokens of each sample, from all other samples."""
    strengths: tuple[Floats, ...]
    """(cells,) by level: the k chosen in each cell; infinite where the level is left out."""


def fit_lengths(
    groups: LengthGroups,
    start: Floats,
    samples: Ints,
    lengths: Floats,
    weight: Floats,
) -> LengthFit:
    """Fit the means of n requests to s samples.

    ``start``: (n,) means to begin with, right up to one common factor. ``samples``: (s,) distinct
    requests, ``lengths``: (s,) their output tokens; seen ones first, then guessed ones of running
    requests. ``weight``: (f,) how much each of the seen ones counts in the choice of k; guessed
    ones do not.
    """
    expected = start[samples]
    total, exposure = lengths.sum(), expected.sum()
    mean = start * (total / exposure) if samples.size else start.copy()
    left_out = expected * _ratio(total - lengths, exposure - expected, total / exposure)
    chosen: list[Floats] = []
    judges = np.argsort(-weight, kind="stable")[:_JUDGES]
    for level in groups.levels:
        pull = _Pull(level, groups, samples, lengths, left_out)
        k = pull.best_strength(judges, weight[judges])
        chosen.append(k)
        if np.isinf(k).all():
            continue
        mean = np.maximum(mean * pull.factors(k), _SMALLEST_MEAN)
        left_out = pull.left_out(k)
    return LengthFit(mean, left_out, tuple(chosen))


class _Pull:
    """What the samples say about the groups of one level."""

    def __init__(
        self, level: Level, groups: LengthGroups, samples: Ints, lengths: Floats, expected: Floats
    ) -> None:
        self.level, self.cell, self.cells = level, groups.cell, groups.cells
        self.samples, self.lengths, self.expected = samples, lengths, expected
        self.group = level.group[samples]
        self.count = np.bincount(self.group, minlength=level.groups).astype(np.float64)
        self.total = np.bincount(self.group, lengths, level.groups)
        self.exposure = np.bincount(self.group, expected, level.groups)

    def factors(self, k: Floats) -> Floats:
        """(n,) factor of each request's mean, for a strength k (cells,)."""
        ratio = _ratio(self.total, self.exposure, 1.0)[self.level.group]
        count = self.count[self.level.group]
        factors: Floats = 1 + count / (count + k[self.cell]) * (ratio - 1)
        return factors

    def left_out(self, k: Floats | float, part: slice | Ints = slice(None)) -> Floats:
        """Expected length of each sample of ``part`` from the other samples of its group."""
        group, expected = self.group[part], self.expected[part]
        if isinstance(k, np.ndarray):
            k = k[self.cell[self.samples[part]]]
        count = self.count[group] - 1
        ratio = _ratio(self.total[group] - self.lengths[part], self.exposure[group] - expected, 1.0)
        return np.maximum(expected * (1 + count / (count + k) * (ratio - 1)), _SMALLEST_MEAN)

    def best_strength(self, part: Ints, weight: Floats) -> Floats:
        """(cells,) the k with the smallest leave-one-out error; infinite if none beats chance.

        The error is the Poisson deviance: least at the true mean, as the squared error is, but
        less at the mercy of a few very long outputs. A level must be better than none by one
        standard error.
        """
        length, before = self.lengths[part], self.expected[part]
        cells = self.cells if self.level.by_cell else 1
        cell = self.cell[self.samples[part]] if self.level.by_cell else np.zeros_like(part)
        best = np.full(cells, np.inf)
        import os
        pen = float(os.environ.get('PEN','1')) + float(os.environ.get('PN','0')) / np.sqrt(np.maximum(np.bincount(cell, minlength=cells), 1))
        if not self.level.by_cell: pen=pen*float(os.environ.get('PT','1'))
        elif 'subtree' in self.level.name: pen=pen*float(os.environ.get('PS','1'))
        least = np.zeros(cells)
        for k in _STRENGTHS:
            after = self.left_out(k, part)
            gain = weight * (after - before - length * np.log(after / before))
            score = np.zeros(cells) + np.bincount(cell, gain, cells)  # float if empty too
            score += pen * np.sqrt(np.bincount(cell, gain * gain, cells))
            better = score < least
            best[better], least[better] = k, score[better]
        return best if self.level.by_cell else np.full(self.cells, best[0])


def _ratio(total: Floats, exposure: Floats, otherwise: float) -> Floats:
    """total / exposure where there is an exposure."""
    ratio = np.full(total.shape, otherwise)
    np.divide(total, exposure, out=ratio, where=exposure > 1e-9)
    return np.maximum(ratio, 0.0)
