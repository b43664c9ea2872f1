"""The predicted peak is the true peak of a running set whose lengths are as predicted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.policy.admission import PeakAdmission, ReserveAll

Parts = tuple[int, list[int]]
"""KV tokens of a request, and its equally likely remaining lengths, ascending."""

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
    admission.add(*new)
    assert admission.peak == pytest.approx(simulated_peak([*running, new]))


def with_parts(count: int) -> st.SearchStrategy[Parts]:
    """A request of ``count`` equally likely remaining lengths."""
    lengths = st.lists(st.integers(0, 40), min_size=count, max_size=count).map(sorted)
    return st.tuples(st.integers(0, 200), lengths)


def memory_at(step: int, running: list[Parts]) -> float:
    """Expected tokens held after so many steps."""
    return sum(
        (kv + step) / len(lengths)
        for kv, lengths in running
        for length in lengths
        if length >= step
    )


@given(st.data())
def test_what_fits_is_what_the_memory_holds_until_the_new_request_has_ended(
    data: st.DataObject,
) -> None:
    """Against a look at each step; of tokens that are shared none are given back at an end."""
    parts = data.draw(st.sampled_from([1, 4]), label="parts")
    requests = data.draw(st.lists(with_parts(parts), max_size=8), label="requests")
    before = data.draw(st.integers(0, len(requests)), label="running at the start")
    kv = np.array([tokens for tokens, _ in requests[:before]], dtype=float)
    ends = np.array([lengths for _, lengths in requests[:before]], dtype=float)
    admission = PeakAdmission(kv, ends.reshape(before, parts))
    for tokens, lengths in requests[before:]:
        admission.add(tokens, np.array(lengths, dtype=float))
    kept = 0
    for _ in range(data.draw(st.integers(0, 3), label="shares") if requests else 0):
        member = data.draw(st.integers(0, len(requests) - 1), label="member")
        tokens, lengths = requests[member]
        shared = data.draw(st.integers(0, tokens), label="shared")
        admission.retain(member, shared)
        if data.draw(st.booleans(), label="looked at"):
            assert admission.kv_tokens >= 0
            admission.fits(0.0, np.zeros(parts), -1.0)
        if data.draw(st.booleans(), label="taken back"):
            admission.retain(member, -shared)
            continue
        requests[member] = (tokens - shared, lengths)
        kept += shared
    new = data.draw(with_parts(parts), label="new")
    limit = data.draw(st.integers(0, 1500), label="limit") + 0.01
    everybody = [*requests, new]
    needed = kept + max(memory_at(step, everybody) for step in range(new[1][-1] + 1))
    assert admission.fits(new[0], np.array(new[1], dtype=float), limit) == (needed <= limit)
    peak = kept + max((memory_at(step, requests) for step in range(42)), default=0)
    assert admission.peak == pytest.approx(peak)


@given(sets, st.tuples(st.integers(0, 500), st.integers(0, 60)), st.integers(0, 3000))
def test_reserving_all_is_the_sum_of_everything_whatever_ends(
    running: list[tuple[int, int]], new: tuple[int, int], limit: int
) -> None:
    half = len(running) // 2
    kv = np.array([k for k, _ in running[:half]], dtype=float)
    remaining = np.array([r for _, r in running[:half]], dtype=float)
    admission = ReserveAll(kv, remaining)
    for tokens, length in running[half:]:
        admission.add(tokens, [float(length)])
    everything = sum(sum(request) for request in [*running, new])
    assert admission.fits(new[0], [float(new[1])], limit) == (everything <= limit)


def test_tokens_that_are_taken_back_count_again() -> None:
    admission = PeakAdmission([100.0], [10.0])
    admission.retain(0, 60.0)
    assert admission.peak == pytest.approx(110.0)  # in order, with less than it will hold
    admission.retain(0, -60.0)
    assert not admission.fits(0.0, [5.0], 80.0)
    assert admission.peak == pytest.approx(110.0)
