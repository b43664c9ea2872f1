"""Taking in the requests of a job: the garbage collector is told to leave them alone.

pytest test/runtime/test_intake.py
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator

import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams
from small_cache import COST

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.receiver import Intake

MANY = 3000


@pytest.fixture(autouse=True)
def _nothing_frozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def take(intake: Intake, count: int) -> None:
    for index in range(count):
        rid = job_ids.make_rid("job", count, index)
        intake.take(Req(rid, "", array("q", [1, 2, index]), SamplingParams(max_new_tokens=8)))


def test_what_has_arrived_is_out_of_the_collectors_sight_until_the_engine_rests() -> None:
    intake = Intake(RequestPool(COST, 1000))
    take(intake, MANY)
    assert gc.get_freeze_count() > 0
    intake.rest()
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_has_frozen_stays_so() -> None:
    intake = Intake(RequestPool(COST, 1000))
    gc.freeze()
    take(intake, MANY)
    intake.rest()
    assert gc.get_freeze_count() > 0


@pytest.mark.parametrize("frozen_before", [False, True])
def test_the_frozen_objects_are_counted_once(
    frozen_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting walks through all of them: many times, it would take longer than the arrivals."""
    if frozen_before:
        gc.freeze()
    counts: list[int] = []
    count = gc.get_freeze_count
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counts.append(1) or count())
    take(Intake(RequestPool(COST, 1000)), MANY)
    assert len(counts) == 1
