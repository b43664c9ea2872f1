"""What the scheduler reports of its pool, of a scheduler that is not there.

pytest test/runtime/test_pool_state.py
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from plain_view import SLOTS, PlainView, kv_cache

from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.runtime.cache.cached_prefixes import CacheUse
from sglang.srt.blendserve.runtime.pool_state import pool_state, told
from sglang.srt.blendserve.settings import BEYOND_COMPUTE, BEYOND_MEMORY


def view_of(requests: int) -> PlainView:
    view = PlainView(kv_cache=kv_cache(321, 45), retractions=3)
    for number in range(requests):
        prompt = np.arange(number % 50 + 1, dtype=np.int32)
        view.pool.add(PoolRequest(f"r{number}", prompt, 5, known_length=True))
    return view


def test_an_empty_pool_has_no_plan_to_report() -> None:
    state = pool_state(PlainView())
    assert state["waiting"] == state["running"] == state["plans_made"] == 0
    assert state["kv_slots"] == SLOTS
    assert state["density"] == []
    figures = ("root_density", "sharing", "optimum_seconds")
    assert {state[name] for name in (*figures, "lanes", "cached")} == {None}


@pytest.mark.parametrize(("requests", "shown"), [(3, 3), (700, 200)])
def test_the_plan_is_reported_in_types_that_json_carries(requests: int, shown: int) -> None:
    view = view_of(requests)
    view.pool.plan_if_due(quiet=True)
    first = next(view.pool.table.everyone_waiting())
    first.payload = SimpleNamespace(output_ids=[], finished_reason=None, to_finish=None)
    view.pool.start(first)
    view.cached = CacheUse(soon=7, unneeded=38, hits=14)
    view.lanes, view.online = {"decode_steps": 2}, {"ttft_p50": None, "parked": 3}
    state = pool_state(view)
    assert json.loads(json.dumps(state)) == state
    assert (state["waiting"], state["running"]) == (requests - 1, 1)
    assert (state["kv_free"], state["retractions"], state["plans_made"]) == (321, 3, 1)
    assert len(state["density"]) == shown
    assert all(1e-6 <= value <= 1e6 for value in state["density"])
    assert state["optimum_seconds"] > 0
    assert (state["cached"]["soon"], state["cached"]["unneeded"]) == (7, 38)
    assert state["lanes"] == {"decode_steps": 2}
    assert state["online"] == {"ttft_p50": None, "parked": 3}


def test_what_waits_elsewhere_is_taken_in() -> None:
    pool = PlainView().pool
    assert not told(pool, {"other": 1})
    assert told(pool, {BEYOND_COMPUTE: "1.5", BEYOND_MEMORY: 2})
    assert pool.current.beyond == (1.5, 2.0)
