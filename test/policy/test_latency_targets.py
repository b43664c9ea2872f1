"""What latency targets leave of a step.

pytest test/policy/test_latency_targets.py
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import COST

from sglang.srt.blendserve.cost.step_times import StepLoad, StepTimes
from sglang.srt.blendserve.latencies import LatencyTargets, Target
from sglang.srt.blendserve.policy.latency_targets import (
    Allowance,
    OnlineLoad,
    quiet_prefill,
)

TIMES = StepTimes(COST)
PROMPT = float(COST.prefill_seconds(500))
NONE = OnlineLoad(0.0, 0, 0, PROMPT)


def targets(ttft: str, tpot: str = "off") -> LatencyTargets:
    return LatencyTargets(Target.parse(ttft), Target.parse(tpot))


@pytest.mark.parametrize(
    ("text", "idle", "seconds"),
    [("500", 9.0, 0.5), ("1.5x", 2.0, 3.0), (" 2X ", 2.0, 4.0), ("off", 1.0, math.inf)],
)
def test_a_target_is_milliseconds_or_a_multiple(text: str, idle: float, seconds: float) -> None:
    assert Target.parse(text).over(idle) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "1x", "0.5x", "-3", "fast", "2xx", "nan", "inf", "1e3"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"milliseconds|multiple"):
        Target.parse(text)


def test_without_targets_all_decode_and_any_prompt_is_computed() -> None:
    allowed = Allowance(targets("off"), TIMES, NONE._replace(decodes=3, kv_tokens=900))
    assert allowed.decodes([1e5] * 700) == 700
    assert allowed.prefill(700, 7e7, 0.0) > 1_000_000
    assert quiet_prefill(targets("off"), TIMES, StepLoad(PROMPT), 0.0) is None


@given(
    ttft=st.floats(1.05, 6),
    tpot=st.floats(1.05, 6),
    online=st.integers(0, 30),
    context=st.integers(1, 8000),
    offline=st.lists(st.integers(1, 8000), max_size=200),
)
def test_what_is_allowed_keeps_the_step_short(
    ttft: float, tpot: float, online: int, context: int, offline: list[int]
) -> None:
    load = NONE._replace(decodes=online, kv_tokens=online * context)
    allowed = Allowance(targets(f"{ttft:.2f}x", f"{tpot:.2f}x"), TIMES, load)
    count = allowed.decodes(offline)
    assert min(len(offline), 1) <= count <= len(offline)
    read = sum(offline[:count])
    decode = StepLoad(decodes=online + count, kv_tokens=online * context + read)
    first = TIMES.seconds(StepLoad(PROMPT))
    own = TIMES.seconds(StepLoad(decodes=online, kv_tokens=online * context))
    bound = (ttft - 1) * first
    if online:
        bound = min(bound, tpot * own)
    if count > 1:
        assert TIMES.seconds(decode) <= bound * 1.01
    if count < len(offline):  # one more would have been too many
        more = StepLoad(decodes=decode.decodes + 1, kv_tokens=decode.kv_tokens + offline[count])
        assert TIMES.seconds(more) > 0.89 * bound
    tokens = allowed.prefill(count, read, 0.0)
    assert tokens == 0 or tokens >= 32
    if tokens > 32:
        step = decode._replace(prefill=tokens * COST.prompt_token_seconds())
        assert TIMES.seconds(step) <= bound * 1.01


def test_a_batch_never_stands_still() -> None:
    tight = Allowance(targets("0.001", "0.001"), TIMES, NONE._replace(decodes=5, kv_tokens=5000))
    assert tight.decodes([4000.0] * 10) == 1
    assert tight.prefill(1, 4000, 0.0) == 0
    assert tight.prefill(0, 0, 0.0) == 32
    assert tight.left == 0


def test_who_waits_for_a_first_token_has_the_rest_of_its_time() -> None:
    waiting = NONE._replace(prefill=PROMPT)
    fresh = Allowance(targets("2x"), TIMES, waiting)
    late = Allowance(targets("2x"), TIMES, waiting._replace(waited=10.0))
    own = TIMES.seconds(StepLoad(PROMPT))
    assert late.seconds == pytest.approx(own)
    assert own < fresh.seconds <= 2 * own
    assert fresh.decodes([100.0] * 100) > late.decodes([100.0] * 100) == 1


def test_a_quiet_time_has_long_steps_but_not_the_longest() -> None:
    usual = StepLoad(PROMPT)
    fixed = TIMES.seconds(StepLoad())
    tokens = quiet_prefill(targets("6x"), TIMES, usual, 0.0)
    assert tokens is not None
    assert tokens * COST.prompt_token_seconds() == pytest.approx(40 * fixed, rel=0.01)
    # Nor does the first one after it wait for much longer than it should.
    short = StepLoad(float(COST.prefill_seconds(20)))
    tokens_of_short = quiet_prefill(targets("1.5x"), TIMES, short, 0.0)
    assert tokens_of_short is not None
    seconds = tokens_of_short * COST.prompt_token_seconds()
    assert seconds == pytest.approx(2 * 1.5 * TIMES.seconds(short), rel=0.01)
    loose = quiet_prefill(targets("100000"), TIMES, usual, 0.0)
    assert loose is not None
    assert loose > 10 * tokens


def test_seconds_used_are_those_beyond_the_online_part() -> None:
    load = NONE._replace(decodes=2, kv_tokens=200)
    allowed = Allowance(targets("9x", "3x"), TIMES, load)
    assert allowed.used(StepLoad(decodes=2, kv_tokens=200)) == 0
    count = allowed.decodes([100.0] * 1000)
    full = StepLoad(decodes=2 + count, kv_tokens=200 + 100 * count)
    assert 0.95 * allowed.left < allowed.used(full) <= allowed.left


def test_who_decodes_keeps_its_pace_while_another_waits() -> None:
    decoding = NONE._replace(decodes=4, kv_tokens=4000)
    both = decoding._replace(prefill=PROMPT, prompt_tokens=500)
    given = targets("100x", "2x")
    alone, beside = (Allowance(given, TIMES, load) for load in (decoding, both))
    assert beside.left <= alone.left * 1.000001
    assert Allowance(targets("off", "2x"), TIMES, both).left < math.inf
