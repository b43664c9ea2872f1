"""Unit densities against the max-min formula. Run: pytest test/plan/test_merge.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.plan.merge import merge_units

seconds = st.just(0.0) | st.floats(min_value=1e-9, max_value=1e6)


def falling_by_definition(compute: list[float], memory: list[float]) -> list[float]:
    """The falling densities nearest to the given ones, by the max-min formula of isotonic
    regression: the least over all starts of the most over all ends of the summed density."""
    count = len(compute)

    def between(first: int, last: int) -> float:
        c, m = sum(compute[first : last + 1]), sum(memory[first : last + 1])
        return c / m if m else np.inf

    return [
        min(max(between(a, b) for b in range(at, count)) for a in range(at + 1))
        for at in range(count)
    ]


@given(st.lists(st.tuples(seconds, seconds).filter(any), max_size=12))
def test_unit_densities_are_the_nearest_that_never_rise(parts: list[tuple[float, float]]) -> None:
    compute, memory = [c for c, _ in parts], [m for _, m in parts]
    level = merge_units(np.array(compute), np.array(memory))
    assert (level[1:] <= level[:-1]).all()
    assert level == pytest.approx(falling_by_definition(compute, memory), rel=1e-6)


@given(st.lists(st.tuples(seconds, seconds)))
def test_units_are_monotone_and_hold_the_sums(parts: list[tuple[float, float]]) -> None:
    compute = np.array([c for c, _ in parts])
    memory = np.array([m for _, m in parts])
    level = merge_units(compute, memory)
    assert level.shape == compute.shape
    assert (level[1:] <= level[:-1]).all()
    for value in np.unique(level):
        inside = level == value
        if memory[inside].sum() > 1e-3:
            sums = compute[inside].sum() / memory[inside].sum()
            assert value == pytest.approx(sums, rel=1e-6, abs=1e-9)


def test_sorted_densities_stay_units_of_their_own() -> None:
    assert merge_units(np.array([9.0, 4.0, 1.0]), np.ones(3)).tolist() == [9.0, 4.0, 1.0]


def test_neighbours_in_the_wrong_order_become_one_unit() -> None:
    level = merge_units(np.array([9.0, 1.0, 3.0, 2.5, 0.5]), np.ones(5))
    assert level == pytest.approx([9.0, 6.5 / 3, 6.5 / 3, 6.5 / 3, 0.5])


def test_units_without_memory_or_without_any_work() -> None:
    """No memory: infinitely dense. No work at all: of the unit before."""
    level = merge_units(np.array([3.0, 2.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert level.tolist() == [np.inf, 2.0, 2.0, 1.0]
    late = merge_units(np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0, 0.0]))
    assert late.tolist() == [6.0, 6.0, 6.0]
    assert merge_units(np.zeros(2), np.zeros(2)).tolist() == [0.0, 0.0]
    assert merge_units(np.zeros(0), np.zeros(0)).size == 0
