"""Who is online, whether more may come and what they will need, without an engine.

pytest test/runtime/test_online.py
"""

from __future__ import annotations

from typing import Any

import pytest
from plain_view import offline, plain_request
from pools import COST

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.runtime.online import OnlineRequests, Room, most_kv_tokens


def chat(number: int, prompt: int = 20, answered: int = 0, most: int = 8) -> Any:
    return plain_request(f"chat{number}", [0] * prompt, max_tokens=most, output_ids=[0] * answered)


def online(cached: int = 0) -> OnlineRequests:
    return OnlineRequests(COST, lambda req: cached)


def test_health_checks_and_offline_requests_are_not_online() -> None:
    check = plain_request("HEALTH_CHECK_1", [0])
    one = chat(1)
    assert OnlineRequests.of([offline(30, 4, Side.MEMORY), check, one]) == [one]


def test_nothing_is_expected_before_the_first() -> None:
    requests = online()
    requests.look(10.0, [], [])
    assert not requests.ever
    assert not requests.expected


def test_the_next_is_expected_for_some_gaps_between_two() -> None:
    requests = online()
    for number in range(20):  # one a second, each there for a moment
        requests.look(float(number), [chat(number)], [])
        requests.look(number + 0.1, [], [])
    assert requests.expected
    requests.look(19.1 + 2.8, [], [])
    assert requests.expected
    requests.look(19.1 + 3.2, [], [])
    assert not requests.expected
    assert requests.ever


@pytest.mark.parametrize(("gap", "hold"), [(0.01, 0.25), (100.0, 30.0)])
def test_it_is_expected_for_a_quarter_of_a_second_and_half_a_minute_at_most(
    gap: float, hold: float
) -> None:
    requests, now = online(), 0.0
    for number in range(50):
        now += gap
        requests.look(now, [chat(number)], [])
    requests.look(now + 0.9 * hold, [], [])
    assert requests.expected
    requests.look(now + 1.1 * hold, [], [])
    assert not requests.expected


def test_what_waits_and_what_decodes_is_the_load() -> None:
    requests = online(cached=15)
    requests.look(1.0, [], [])
    requests.look(5.0, [chat(1)], [chat(2, prompt=50, answered=3)])
    load = requests.load(prefill=True, last_step=0.5)
    assert load.prefill == load.usual_prefill == float(COST.prefill_seconds(5, 15))
    assert (load.decodes, load.kv_tokens, load.waited) == (1, 53, 0.5)
    assert requests.load(prefill=False, last_step=0.5).prefill == 0
    assert most_kv_tokens(chat(1)) == 28


def test_room_is_kept_for_as_many_as_were_there_at_once_and_less_of_it_later() -> None:
    requests = online()
    three = [chat(n, prompt=92, most=8) for n in range(3)]
    requests.look(1.0, [], three)
    assert requests.reserve == Room(0, 0)
    requests.look(1.1, [], three[:1])
    assert requests.reserve.requests == pytest.approx(2, rel=0.01)
    assert requests.reserve.kv_tokens == pytest.approx(200, rel=0.01)
    requests.look(31.1, [], three[:1])
    assert requests.reserve.requests == pytest.approx(0.5, rel=0.01)
    requests.look(31.2, [], [])
    requests.look(100.0, [], [])  # nobody is expected
    assert requests.reserve == Room()


def test_latencies_are_those_of_the_first_token_and_the_later_ones() -> None:
    requests = online()
    assert requests.figures()["ttft_p50"] is None
    requests.look(1.0, [chat(1)], [])
    requests.look(1.5, [], [chat(1, answered=1)])
    requests.look(2.5, [], [chat(1, answered=6)])
    requests.look(2.75, [], [])
    figures = requests.figures()
    assert figures["ttft_p50"] == figures["ttft_p95"] == 0.5
    assert figures["tpot_p50"] == pytest.approx(1.25 / 6)
    assert (figures["ended"], figures["running"]) == (1, 0)


def test_who_ends_with_the_first_token_has_a_time_to_it() -> None:
    requests = online()
    requests.look(1.0, [chat(1)], [])
    requests.look(1.25, [], [])
    assert requests.figures()["ttft_p50"] == 0.25
    assert requests.figures()["tpot_p50"] is None


def test_those_that_come_together_are_one_arrival() -> None:
    requests = online()
    for second in range(0, 50, 5):
        requests.look(float(second), [chat(16 * second + n) for n in range(16)], [])
        requests.look(second + 0.1, [], [])
    requests.look(45.1 + 14, [], [])
    assert requests.expected


def test_a_prompt_on_another_lane_is_not_at_its_end() -> None:
    requests = online()
    requests.look(1.0, [chat(1)], [])
    requests.look(1.5, [], [], [chat(1)])
    assert requests.ended == 0
    requests.look(2.0, [], [chat(1, answered=1)])
    assert requests.figures()["ttft_p50"] == 1.0
