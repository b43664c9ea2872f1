"""The length estimator: bounds that no data may break.

pytest test/lengths/test_lengths.py
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sglang.srt.blendserve.lengths.estimator import LengthEstimator
from sglang.srt.blendserve.lengths.forecast import LEVELS
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]


class Case(NamedTuple):
    """Requests, some of them finished, some running."""

    prompts: list[NDArray[np.int32]]
    max_tokens: Ints
    known: NDArray[np.bool_]
    job: Ints
    lengths: Ints
    finished: Ints
    running: Ints
    generated: Ints

    def estimator(self) -> LengthEstimator:
        """What has seen the finished ones."""
        estimator = LengthEstimator(
            np.array([p.size for p in self.prompts]),
            self.max_tokens,
            self.known,
            PrefixTree.build(self.prompts),
            self.job,
        )
        for request in self.finished.tolist():
            estimator.observe(request, int(self.lengths[request]))
        return estimator


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prompt = st.lists(st.integers(0, 2), min_size=1, max_size=8)
    prompts = draw(st.lists(prompt, min_size=1, max_size=40))
    n = len(prompts)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    cap = rng.choice([1, 16, 1000, 100_000], n)
    known = rng.random(n) < draw(st.sampled_from([0.0, 0.3]))
    scale = draw(st.sampled_from([0.0, 1.0, 4.0]))
    length = np.minimum(np.maximum(np.exp(rng.normal(3, scale, n)).astype(np.int64), 1), cap)
    length = np.where(known, cap, length)
    state = rng.integers(0, 3, n)
    running = np.flatnonzero(state == 1)
    return Case(
        [np.array(p, dtype=np.int32) for p in prompts],
        cap,
        known,
        rng.integers(0, 2, n),
        length,
        np.flatnonzero(state == 0),
        running,
        rng.integers(0, np.maximum(length[running], 1)),
    )


@settings(deadline=None, max_examples=150)
@given(cases())
def test_estimates_are_finite_positive_and_within_the_caps(case: Case) -> None:
    estimator = case.estimator()
    estimate = estimator.estimate(case.running, case.generated)
    assert np.isfinite(estimate).all()
    assert (estimate >= 1).all()
    waiting = np.setdiff1d(np.arange(len(case.prompts)), case.running)
    assert (estimate[waiting] <= case.max_tokens[waiting]).all()
    assert (estimate[case.known] == case.max_tokens[case.known]).all()
    assert (estimate[case.finished] == case.lengths[case.finished]).all()
    reads = estimator.kv_reads(estimate)
    prompt = np.array([p.size for p in case.prompts])
    assert np.isfinite(reads).all()
    assert (reads[waiting] >= (prompt * estimate + estimate**2 / 2)[waiting] * (1 - 1e-9)).all()


@settings(deadline=None, max_examples=150)
@given(cases())
def test_a_running_request_is_never_expected_to_have_ended(case: Case) -> None:
    estimator = case.estimator()
    estimate = estimator.estimate(case.running, case.generated)
    assert (estimate[case.running] > case.generated).all()
    remaining = estimator.remaining_quantiles(case.running, case.generated, LEVELS)
    assert np.isfinite(remaining).all()
    assert (remaining >= 1).all()
    assert (np.diff(remaining, axis=1) >= 0).all()
    room = np.maximum(case.max_tokens[case.running] - case.generated, 1)
    assert (remaining <= room[:, None]).all()


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(0, 1 << 16))
def test_the_order_in_which_requests_end_or_are_listed_does_not_matter(
    case: Case, seed: int
) -> None:
    """Their order of arrival does: it is a feature, for files that are sorted by source."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(case.running.size)
    other = case._replace(
        finished=rng.permutation(case.finished),
        running=case.running[shuffled],
        generated=case.generated[shuffled],
    )
    once = case.estimator().estimate(case.running, case.generated)
    again = other.estimator().estimate(other.running, other.generated)
    assert np.allclose(once, again, rtol=1e-6)


def test_a_copy_learns_on_its_own() -> None:
    prompts = [np.array([n, 1], dtype=np.int32) for n in range(40)]
    unknown = np.zeros(40, dtype=np.bool_)
    first = LengthEstimator([2] * 40, [1000] * 40, unknown, PrefixTree.build(prompts))
    before = first.estimate()
    second = first.copy()
    for request in range(20):
        second.observe(request, 900)
    assert second.estimate()[30] > 2 * before[30]
    assert (first.estimate() == before).all()
