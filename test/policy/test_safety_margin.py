"""What memory admission keeps free for wrong predictions."""

import numpy as np
import pytest

from sglang.srt.blendserve.policy.margin import Caution, SafetyMargin
from sglang.srt.blendserve.policy.tuning import DEFAULTS, Tuning

LENGTHS = np.array([[10.0, 40.0, 90.0, 300.0]] * 40)
SURE, NO_CAP = np.zeros(40), np.full(40, np.inf)


def priced(slot_price: float, tuning: Tuning = DEFAULTS) -> Caution:
    caution = Caution(tuning)
    caution.slot_price = slot_price
    return caution


def test_memory_may_run_short_as_often_as_it_pays() -> None:
    """A slot that earns a tenth of a token's computation by the horizon may be one too few once in
    ten times, 1.28 deviations of a normal distribution; one that earns it whole need not be kept.
    """
    assert priced(0.001).deviations(100.0) == pytest.approx(1.2816, abs=1e-3)
    assert priced(0.001).deviations(5000.0) == 0
    assert priced(0.0).deviations(5000.0) == pytest.approx(2.3263, abs=1e-3)  # least_risk
    given = [priced(0.001).deviations(2.0**octave) for octave in range(16)]
    assert given == sorted(given, reverse=True)


def test_a_request_is_looked_at_until_its_slots_have_earned_what_they_cost() -> None:
    assert priced(0.01, Tuning(earned=2.0)).horizon == 200
    assert priced(100.0).horizon == 1
    assert priced(0.0).horizon == np.inf


def test_the_margin_is_the_one_of_its_definition() -> None:
    """z^2 times the independent variances, and the square of what all errors have in common."""
    for bias, price in ((0.1, 0.001), (0.5, 0.001), (0.5, 0.1)):
        caution = priced(price, Tuning(bias=bias))
        margin = SafetyMargin(LENGTHS, SURE, NO_CAP, caution)
        cut = np.minimum(LENGTHS, 64.0)
        common = bias * cut.mean(axis=1).sum()
        z = caution.deviations(64.0)
        expected = np.sqrt(z**2 * cut.var(axis=1).sum() + common**2)
        assert margin.up_to(64.0) == pytest.approx(expected)


def test_who_joins_counts_as_who_was_there() -> None:
    caution = Caution(Tuning(bias=0.2))
    whole = SafetyMargin(LENGTHS, SURE + 0.5, NO_CAP, caution)
    grown = SafetyMargin(LENGTHS[:30], SURE[:30] + 0.5, NO_CAP[:30], caution)
    grown.up_to(64.0)  # one horizon before they join, one after
    for row in LENGTHS[30:]:
        grown.add(row, 0.5, np.inf)
    for horizon in (64.0, 256.0):
        assert grown.up_to(horizon) == pytest.approx(whole.up_to(horizon))


def test_caps_count_where_the_memory_holds_many_of_them() -> None:
    caution = Caution(DEFAULTS)
    assert [caution.caps_count(100.0, slots) for slots in (1500, 1700)] == [False, True]
