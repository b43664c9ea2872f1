"""The division of a GPU's SMs: monotone, bounded, slow to change, and near the best of a simulated
device after some steps.

    pytest test/gpu/test_sm_split.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.policy.pace import StepLoad
from sglang.srt.blendserve.runtime.overlap.sm_split import SplitController, divisions
from sglang.srt.blendserve.runtime.overlap.whole_chunks import WholeChunks

SHARES = [prefill / 132 for prefill, _ in divisions(132, 8, 8)]
WORK = st.floats(1e-4, 1e4)


@given(total=st.integers(32, 200), multiple=st.sampled_from([1, 2, 8]), count=st.integers(1, 8))
def test_divisions_use_every_sm_once_and_keep_the_hardwares_rules(
    total: int, multiple: int, count: int
) -> None:
    pairs = divisions(total, multiple, multiple, count)
    assert 1 <= len(pairs) <= count
    for prefill, decode in pairs:
        assert prefill + decode == total
        assert prefill % multiple == 0
        assert prefill >= multiple
        assert decode >= 16
    prefills = [prefill for prefill, _ in pairs]
    assert prefills == sorted(set(prefills))


def test_the_divisions_of_an_h200() -> None:
    assert divisions(132, 8, 8) == [(40, 92), (56, 76), (72, 60), (80, 52), (96, 36), (112, 20)]


def test_a_device_too_small_to_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        divisions(20, 8, 8)


@pytest.mark.parametrize("shares", [[], [0.5, 0.4], [0.0, 0.5], [0.5, 1.0], [0.5, 0.5]])
def test_shares_must_ascend_between_0_and_1(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="prefill shares"):
        SplitController(shares)


class Device:
    """Prefill speed rises with its SMs and saturates; decode is flat above a knee."""

    def __init__(self, knee: float, exponent: float, prefill: float, decode: float) -> None:
        shares = np.array(SHARES)
        self.prefill = prefill * shares**exponent
        self.decode = decode * np.minimum(1.0, (1 - shares) / knee)

    def seconds(self, prefill: float, decode: float) -> np.ndarray:
        return np.maximum(prefill / self.prefill, decode / self.decode)

    def play(
        self, controller: SplitController, prefill: float, decode: float, steps: int, noise: float
    ) -> list[int]:
        rng = np.random.default_rng(0)
        chosen = []
        for _ in range(steps):
            index = controller.choose(prefill, decode)
            chosen.append(index)
            jitter = np.exp(rng.normal(0.0, noise, 2))
            controller.observe_decode(index, 1.0, jitter[0] / self.decode[index])
            controller.observe_prefill(index, 1.0, jitter[1] / self.prefill[index])
        return chosen


DEVICES = st.builds(
    Device,
    knee=st.floats(0.3, 0.9),
    exponent=st.floats(0.6, 1.1),
    prefill=st.floats(0.2, 1.0),
    decode=st.floats(0.2, 1.0),
)


@given(device=DEVICES, ratio=st.floats(0.1, 10.0))
@settings(max_examples=200, deadline=None)
def test_it_comes_near_the_best_division_of_a_device_it_does_not_know(
    device: Device, ratio: float
) -> None:
    controller = SplitController(SHARES)
    last = device.play(controller, ratio, 1.0, steps=200, noise=0.0)[-1]
    times = device.seconds(ratio, 1.0)
    assert times[last] <= 1.12 * times.min()


@given(device=DEVICES, ratio=st.floats(0.1, 10.0))
@settings(max_examples=50, deadline=None)
def test_it_comes_to_rest_under_noise(device: Device, ratio: float) -> None:
    controller = SplitController(SHARES)
    device.play(controller, ratio, 1.0, steps=200, noise=0.03)
    before = controller.switches
    device.play(controller, ratio, 1.0, steps=200, noise=0.03)
    assert controller.switches - before <= 8


@given(device=DEVICES, one=WORK, other=WORK)
@settings(max_examples=200, deadline=None)
def test_more_prefill_never_gets_fewer_sms(device: Device, one: float, other: float) -> None:
    """Without memory of an earlier choice, on speeds that were measured everywhere."""

    def first_choice(prefill: float) -> int:
        controller = SplitController(SHARES)
        for index in range(len(SHARES)):
            controller.observe_decode(index, 1.0, 1.0 / device.decode[index])
            controller.observe_prefill(index, 1.0, 1.0 / device.prefill[index])
        return controller.choose(prefill, 1.0)

    low, high = sorted((one, other))
    assert first_choice(low) <= first_choice(high)


@given(
    events=st.lists(
        st.tuples(st.integers(0, len(SHARES) - 1), st.floats(0, 1e3), st.floats(0, 1e3)),
        max_size=60,
    ),
    work=st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_whatever_is_measured_the_choice_exists_and_speeds_are_monotone(
    events: list[tuple[int, float, float]], work: list[tuple[float, float]]
) -> None:
    controller = SplitController(SHARES)
    for number, (index, amount, seconds) in enumerate(events):
        observe = controller.observe_decode if number % 2 else controller.observe_prefill
        observe(index, amount, seconds)
        assert 0 <= controller.choose(*work[number % len(work)]) < len(SHARES)
    prefill, decode = controller.speeds()
    assert np.isfinite(prefill).all()
    assert np.isfinite(decode).all()
    assert (np.diff(prefill) >= 0).all()
    assert (np.diff(decode) <= 0).all()


def test_only_the_ratio_of_the_work_matters() -> None:
    chosen = [SplitController(SHARES).choose(3 * k, 2 * k) for k in (1e-3, 1.0, 1e3)]
    assert len(set(chosen)) == 1


def test_a_small_gain_is_not_worth_a_change() -> None:
    controller = SplitController([0.4, 0.6], hysteresis=0.1, dwell=2)
    first = controller.choose(1.0, 1.0)
    for _ in range(10):  # prefill is equally fast everywhere: the other division gains nothing
        for index in (0, 1):
            controller.observe_prefill(index, 1.0, 1.0)
            controller.observe_decode(index, 1.0, 1.0 if index == first else 0.95)
    assert controller.choose(1.0, 1.0) == first
    assert controller.switches == 0


def test_a_division_is_kept_until_it_has_been_measured() -> None:
    controller = SplitController(SHARES, dwell=4)
    first = controller.choose(1.0, 100.0)
    assert [controller.choose(100.0, 1.0) for _ in range(3)] == [first] * 3
    for _ in range(4):
        controller.observe_decode(first, 1.0, 1.0)
    assert controller.choose(100.0, 1.0) > first


def test_a_lane_of_its_own_always_gets_a_full_chunk() -> None:
    pace = WholeChunks(2048)
    for load in (StepLoad(0, 0), StepLoad(500, 1e6)):
        assert pace.budget(load, RemainingWork(1.0, 1.0)) == (2048, 2048)
