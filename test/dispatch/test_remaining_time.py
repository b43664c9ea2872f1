"""The time left of a job.

pytest test/dispatch/test_remaining_time.py
"""

from __future__ import annotations

import pytest

from sglang.srt.blendserve.dispatch.remaining_time import RemainingTime


def after(*shares: float, step: float = 10.0) -> float | None:
    left = RemainingTime()
    for number, share in enumerate(shares):
        left.note(number * step, share)
    return left.seconds


def test_at_a_steady_rate_it_is_what_is_left_at_that_rate() -> None:
    assert after(0, 0.1, 0.2, 0.3, 0.4, 0.5) == pytest.approx(50)


def test_the_rate_of_late_counts() -> None:
    slow_start = [0.0, 0.001, 0.002, 0.003, *(0.1 * n for n in range(1, 7))]
    assert after(*slow_start) == pytest.approx(40, rel=0.3)


def test_at_first_nothing_is_known() -> None:
    assert after() is None
    assert after(0.0) is None
    assert after(0.0, 0.4, step=20) is None  # for less than half a minute


def test_where_predictions_have_grown_nothing_is_said() -> None:
    assert after(0.3, 0.3, 0.2, 0.2, 0.1, 0.1) is None


def test_many_notes_are_kept_as_few() -> None:
    left = RemainingTime()
    for tenth in range(100_000):
        left.note(tenth / 10, tenth / 200_000)
    assert left.seconds == pytest.approx(10_000, rel=0.01)
    assert len(left._marks) < 2000


def test_after_a_pause_it_begins_anew() -> None:
    left = RemainingTime()
    for second in range(0, 100, 10):
        left.note(second, second / 1000)
    left.forget()
    assert left.seconds is None
    for second in range(36_000, 36_100, 10):
        left.note(second, 0.1 + (second - 36_000) / 1000)
    assert left.seconds == pytest.approx(810, rel=0.02)


def test_shares_of_something_else_begin_anew() -> None:
    left = RemainingTime()
    for second in range(0, 100, 10):
        left.note(second, second / 1000)
    for second in range(100, 200, 10):
        left.note(second, 0.5 + (second - 100) / 1000, by="lines")
    assert left.seconds == pytest.approx(410, rel=0.02)
