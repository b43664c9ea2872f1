"""The predicted peak is the true peak of a running set whose lengths are as predicted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.planner.admission import PeakAdmission

sets = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60)), max_size=12)


def simulated_peak(running: list[tuple[int, int]]) -> int:
    """Step by step: each request grows by a token a step and frees everything after its last."""
    longest = max((remaining for _, remaining in running), default=0)
    return max(
        (
            sum(kv + step for kv, remaining in running if remaining >= step)
            for step in range(longest + 1)
        ),
        default=0,
    )


@given(sets)
def test_peak_is_the_simulated_peak(running: list[tuple[int, int]]) -> None:
    kv, remaining = (
        (np.array(x, dtype=float) for x in zip(*running, strict=True))
        if running
        else (
            np.zeros(0),
            np.zeros(0),
        )
    )
    admission = PeakAdmission(kv, remaining)
    # With integer lengths the step-by-step peak stands at the end of some request.
    assert admission.peak == pytest.approx(simulated_peak(running))
    assert admission.kv_tokens == pytest.approx(sum(k for k, _ in running))


@given(sets, st.tuples(st.integers(0, 500), st.integers(0, 60)))
def test_joining_is_the_same_as_starting_with_it(
    running: list[tuple[int, int]], new: tuple[int, int]
) -> None:
    kv = np.array([k for k, _ in running], dtype=float)
    remaining = np.array([r for _, r in running], dtype=float)
    admission = PeakAdmission(kv, remaining)
    promised = admission.peak_with(*new)
    admission.add(*new)
    assert len(admission) == len(running) + 1
    assert admission.peak == pytest.approx(promised)
    assert promised == pytest.approx(simulated_peak([*running, new]))
