"""What the requests in flight hold, to the token.

pytest test/policy/test_step_memory.py
"""

from __future__ import annotations

import numpy as np
import pytest
from pools import COST

from sglang.srt.blendserve.policy.margin import Caution
from sglang.srt.blendserve.policy.memory import StepMemory
from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.policy.tuning import DEFAULTS
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool

PROMPT, SLOTS, MOST, OTHERS = 10, 1000, 64, 50


def memory_of(generated: list[int], *, chunk: int | None = None, left: int = 0) -> StepMemory:
    """Requests of known length, all in flight, with so many output tokens each, before a step."""
    pool = RequestPool(COST, SLOTS)
    requests = [
        PoolRequest(f"r{n}", np.full(PROMPT, n, dtype=np.int32), 20, known_length=True)
        for n in range(len(generated))
    ]
    for request in requests:
        pool.add(request)
    pool.plan_if_due(quiet=True)
    stored = 0
    for place, (request, tokens) in enumerate(zip(requests, generated, strict=True)):
        pool.start(request)
        request.held_tokens, request.generated = PROMPT, tokens
        # The latest output token is stored by the step that reads it; a prompt that is computed
        # once more takes what had been generated along.
        stored += PROMPT + (tokens if place == chunk else max(tokens - 1, 0))
    state = EngineState(
        running=len(requests) - (chunk is not None),
        kv_tokens=0,
        used_slots=OTHERS + stored - left,
        free_requests=64,
        cached_tokens=lambda request: 0,
        chunk=None if chunk is None else requests[chunk],
        chunk_tokens=left,
    )
    return StepMemory(pool, state, Caution(DEFAULTS), MOST)


@pytest.mark.parametrize("generated", [[1], [5, 9, 2], [0, 0, 7], [19] * 8])
def test_what_others_hold_is_theirs_to_the_token(generated: list[int]) -> None:
    """One token too few for each request would be room that is not there when most have ended."""
    assert memory_of(generated).limit == SLOTS - OTHERS


def test_the_peak_is_what_they_hold_at_the_end() -> None:
    assert memory_of([19]).admission.peak == PROMPT + 19  # the 20th is never stored
    assert memory_of([10, 10]).admission.peak == 2 * (PROMPT + 19)


def test_a_prompt_that_is_computed_once_more_holds_what_it_had_generated() -> None:
    assert memory_of([7, 5], chunk=0, left=4).limit == SLOTS - OTHERS


@pytest.mark.parametrize(("room", "fits"), [(30, True), (29, False)])
def test_a_prompt_that_the_step_leaves_unfinished_ends_later(room: int, fits: bool) -> None:
    """One that decodes has grown by one more token when it ends."""
    pool = RequestPool(COST, 60)
    old, new = (
        PoolRequest(name, np.full(size, number, dtype=np.int32), most, known_length=True)
        for number, (name, size, most) in enumerate((("old", 9, 21), ("new", 30, 10)))
    )
    for request in (old, new):
        pool.add(request)
    pool.plan_if_due(quiet=True)
    pool.start(old)
    old.held_tokens, old.generated = 9, 1
    state = EngineState(
        running=1,
        kv_tokens=9,
        used_slots=9,
        free_requests=64,
        cached_tokens=lambda request: 0,
    )
    memory = StepMemory(pool, state, Caution(DEFAULTS), MOST)
    one = memory.candidate(new)
    at_its_end = 30 + 10 + 9 + 10  # in time
    assert memory.fits(one, at_its_end, room) == fits
