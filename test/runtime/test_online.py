"""Offline prefill makes way for online requests that decode, without an engine.

pytest test/runtime/test_online.py
"""

from __future__ import annotations

from plain_view import offline, plain_request
from pools import COST

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.runtime.online import OnlineRequests

OFFLINE = offline(30, 4, Side.MEMORY)
ONLINE = plain_request("chat", [0] * 7)
STATE = EngineState(
    running=8, kv_tokens=4000, used_slots=0, free_requests=8, cached_tokens=lambda _: 0
)


def test_prefill_and_decode_take_turns_beside_online_requests_only() -> None:
    online = OnlineRequests(0.25)
    assert not online.decode_first([OFFLINE, ONLINE])
    online.launches(prefill=True)
    assert online.decode_first([OFFLINE, ONLINE])
    assert not online.decode_first([OFFLINE])
    online.launches(prefill=False)
    assert not online.decode_first([OFFLINE, ONLINE])


def test_the_online_requests_are_those_without_a_mark() -> None:
    assert OnlineRequests(0.25).look([OFFLINE, ONLINE, OFFLINE]) == [ONLINE]


def test_prefill_is_cut_beside_online_decodes_and_for_some_steps_after_them() -> None:
    online = OnlineRequests(0.25)
    assert online.limit(COST, STATE, 100_000) == 100_000
    online.look([OFFLINE, ONLINE])
    cut = online.limit(COST, STATE, 100_000)
    assert 0 < cut < 100_000
    assert online.limit(COST, STATE, 5) == 5
    for _ in range(63):
        online.look([OFFLINE])
        assert online.limit(COST, STATE, 100_000) == cut
    online.look([OFFLINE])
    assert online.limit(COST, STATE, 100_000) == 100_000


def test_a_share_of_one_leaves_everything_to_prefill() -> None:
    online = OnlineRequests(1.0)
    online.look([ONLINE])
    assert online.limit(COST, STATE, 100_000) == 100_000
