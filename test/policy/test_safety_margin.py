"""What memory admission keeps free for wrong predictions."""

import numpy as np
import pytest

from sglang.srt.blendserve.policy.margin import Caution, SafetyMargin
from sglang.srt.blendserve.policy.tuning import DEFAULTS, Tuning

LENGTHS = np.array([[10.0, 40.0, 90.0, 300.0]] * 40)
SURE, NO_CAP = np.zeros(40), np.full(40, np.inf)


@pytest.mark.parametrize(
    ("scarcity", "prefill_part", "more"),
    [(0.3, 0.9, 0.0), (1.5, 0.2, 0.0), (1.5, 0.9, 1.0), (0.75, 0.9, 0.5)],
)
def test_more_is_kept_where_compute_is_scarce_and_prompts_keep_it_busy(
    scarcity: float, prefill_part: float, more: float
) -> None:
    caution = Caution(DEFAULTS)
    caution.renew(scarcity, prefill_part)
    assert caution.bias == pytest.approx(DEFAULTS.bias + more * DEFAULTS.more_bias)


def test_the_margin_is_the_one_of_its_definition() -> None:
    """z^2 times the independent variances, and the square of what all errors have in common."""
    for bias in (0.1, 0.5):
        margin = SafetyMargin(LENGTHS, SURE, NO_CAP, Caution(Tuning(bias=bias)))
        cut = np.minimum(LENGTHS, 64.0)
        common = bias * cut.mean(axis=1).sum()
        expected = np.sqrt(cut.var(axis=1).sum() + common**2)
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


def test_caps_count_in_smaller_caches_where_compute_is_scarce() -> None:
    for scarcity, slots, counts in ((0.3, 1500, False), (0.3, 1700, True), (1.5, 600, True)):
        caution = Caution(DEFAULTS)
        caution.renew(scarcity, 1.0)
        assert caution.caps_count(100.0, slots) == counts
