"""What holds for every choice of the step policy, at every pace, whatever comes.

pytest test/policy/test_every_pace.py

The choices themselves are checked in `played_engine`, as they are made.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_engine import SLOTS, Asked, Online, Played

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.pace import PACES
from sglang.srt.blendserve.policy.tuning import Tuning

TO_THE_END = Tuning(earned=math.inf)
"""A request must fit to its end."""

every_pace = pytest.mark.parametrize(
    ("pace", "examples"), [(pace, 80 if pace == "marginal" else 15) for pace in PACES]
)


@st.composite
def requests(draw: st.DrawFn, most: int = 25) -> list[Asked]:
    """Requests that share prefixes, a few of them long ones, some of known length."""
    prefixes = draw(st.lists(st.integers(0, 120), min_size=1, max_size=3))
    made = []
    for _ in range(draw(st.integers(1, most))):
        group = draw(st.integers(0, len(prefixes) - 1))
        tail = draw(st.lists(st.integers(0, 3), min_size=1, max_size=30))
        cap = draw(st.integers(1, 120))
        known = draw(st.booleans())
        arrives = draw(st.sampled_from([0, 0, 0, 5, 40]))
        given_up = draw(st.sampled_from([None, None, None, 0, 3, 30]))
        made.append(
            Asked(
                prompt=[*range(1000 * group, 1000 * group + prefixes[group]), *tail],
                max_tokens=cap,
                length=cap if known else draw(st.integers(1, cap)),
                known=known,
                namespace=draw(st.sampled_from(["", "", "adapter"])),
                arrives=arrives,
                aborted=None if given_up is None else arrives + given_up,
            )
        )
    return made


online = st.lists(
    st.builds(
        lambda begin, steps, count, slots: Online(begin, begin + steps, count, slots),
        begin=st.sampled_from([0, 7, 30]),
        steps=st.integers(1, 40),
        count=st.integers(1, 8),
        slots=st.integers(1, 20),
    ),
    max_size=2,
)


@every_pace
def test_every_request_ends_once_and_every_choice_is_sound(pace: str, examples: int) -> None:
    """Arrivals, aborts, retractions, shared prefixes, namespaces, online load, engines that cannot
    split a prompt."""

    @settings(deadline=None, max_examples=examples)
    @given(
        asked=requests(),
        online=online,
        max_tokens=st.sampled_from([1, 7, 64, 400]),
        min_tokens=st.sampled_from([1, 16]),
        whole_prompts=st.booleans(),
        most_running=st.sampled_from([1, 5, 64]),
    )
    def check(
        asked: list[Asked],
        online: list[Online],
        max_tokens: int,
        min_tokens: int,
        whole_prompts: bool,
        most_running: int,
    ) -> None:
        played = Played(
            asked,
            pace,
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_tokens),
            whole_prompts=whole_prompts,
            most_running=most_running,
            online=online,
        ).run()
        assert sorted(played.ended + played.aborted) == [*range(len(asked))]
        times = Counter(played.started)
        assert {*played.ended} <= {*times}
        assert sum(times.values()) - len(times) <= played.given_back

    check()


@pytest.mark.parametrize("pace", PACES)
def test_a_whole_prompt_joins_no_step_that_it_overfills(pace: str) -> None:
    """Only a prompt that no step has room for exceeds the step's tokens, and goes alone."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 9, rng.integers(1, 90)).tolist() for _ in range(80)]
    asked = [Asked(prompt, 9, int(rng.integers(1, 9))) for prompt in prompts]
    Played(asked, pace, slots=2000, whole_prompts=True).run()


@every_pace
def test_known_lengths_alone_never_need_more_slots_than_there_are(pace: str, examples: int) -> None:
    """So nothing is retracted where no request is to pay for itself before memory runs short.
    Whoever computed a shared prefix, it is in use until the last
    one in flight that begins with it has ended."""
    if pace == "paper":
        pytest.skip("the paper's scanner admits without a predicted peak")

    @settings(deadline=None, max_examples=examples)
    @given(asked=requests(), max_tokens=st.sampled_from([16, 64, 400]))
    def check(asked: list[Asked], max_tokens: int) -> None:
        # All are there from the start and stay: later arrivals and aborts can need more (pace
        # `fixed`, rarely), since the peak was predicted without them.
        told = [
            replace(one, known=True, length=one.max_tokens, arrives=0, aborted=None)
            for one in asked
        ]
        played = Played(told, pace, max_tokens=max_tokens, spare=2 * SLOTS, tuning=TO_THE_END).run()
        assert played.most_used <= SLOTS

    check()


@every_pace
def test_choices_depend_on_the_calls_alone(
    pace: str, examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the clock, nor on what else the process has done: ranks of a tensor parallel group
    each decide for themselves and must agree."""
    ticks = iter(range(10**9))

    def jumping() -> float:
        return float(next(ticks) * 997 % 1009)

    @settings(deadline=None, max_examples=examples // 3)
    @given(asked=requests(), online=online)
    def check(asked: list[Asked], online: list[Online]) -> None:
        one = Played(asked, pace, online=online).run()
        with monkeypatch.context() as patch:
            for name in ("time", "monotonic", "perf_counter"):
                patch.setattr(time, name, jumping)
            other = Played(asked, pace, online=online).run()
        assert one.choices == other.choices

    check()


@pytest.mark.parametrize("pace", PACES)
def test_a_request_belongs_to_the_side_that_it_was_taken_from(pace: str) -> None:
    """Long prompts stand at one side of the scan and long outputs at the other: while both wait,
    each is taken from its own, and both sides are served from the start."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 9999, 60).tolist() for _ in range(120)]
    outputs = [rng.integers(0, 9999, 3).tolist() for _ in range(120)]
    asked = [Asked(prompt, 2, 2, known=True) for prompt in prompts]
    asked += [Asked(prompt, 90, 90, known=True) for prompt in outputs]
    played = Played(asked, pace, slots=2000, max_tokens=128).run(steps=12)
    sides = {number: played.requests[number].side for number in played.started}
    assert all(side is (Side.COMPUTE if n < 120 else Side.MEMORY) for n, side in sides.items())
    assert {*sides.values()} == {*Side}
    assert len(played.pool) > 60
