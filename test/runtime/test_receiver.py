"""Taking in the requests of a job, and the garbage collector told to leave them alone.

pytest test/runtime/test_receiver.py
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from plain_view import plain_request
from pools import COST

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.offline_request import offline_request
from sglang.srt.blendserve.runtime.receiver import OfflineReceiver

MANY = 3000


@pytest.fixture(autouse=True)
def _nothing_frozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def take(receiver: OfflineReceiver, count: int) -> None:
    for index in range(count):
        rid = job_ids.make_rid("job", count, index)
        receiver.take(plain_request(rid, [1, 2, index]))


def test_what_has_arrived_is_out_of_the_collectors_sight_until_the_engine_rests() -> None:
    receiver = OfflineReceiver(RequestPool(COST, 1000))
    take(receiver, MANY)
    assert gc.get_freeze_count() > 0
    receiver.rest()
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_has_frozen_stays_so() -> None:
    receiver = OfflineReceiver(RequestPool(COST, 1000))
    gc.freeze()
    take(receiver, MANY)
    receiver.rest()
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
    take(OfflineReceiver(RequestPool(COST, 1000)), MANY)
    assert len(counts) == 1


def test_only_marked_requests_that_may_run_enter_the_pool() -> None:
    receiver = OfflineReceiver(RequestPool(COST, 1000))
    rid = job_ids.make_rid("job", 1, 0)
    assert receiver.wants(plain_request(rid, [1, 2]))
    assert not receiver.wants(plain_request("chat", [1, 2]))
    assert not receiver.wants(plain_request(rid, [1, 2], to_finish="an error"))
    assert not receiver.wants(plain_request(rid, [1, 2], finished=lambda: True))
    receiver.take(plain_request(rid, [1, 2]))
    assert not receiver.wants(plain_request(rid, [1, 2]))


def test_a_length_is_known_if_nothing_ends_the_output_before_its_cap() -> None:
    pool = RequestPool(COST, 1000)
    receiver = OfflineReceiver(pool)
    for index, (ignores, stops) in enumerate([(True, []), (True, ["end"]), (False, [])]):
        req = plain_request(job_ids.make_rid("job", 3, index), [1, 2, index], extra_key="adapter")
        req.sampling_params.ignore_eos, req.sampling_params.stop_strs = ignores, stops
        receiver.take(req)
        assert offline_request(req) is pool.table.by_rid[req.rid]
    waiting = [*pool.table.everyone_waiting()]
    assert [request.known_length for request in waiting] == [True, False, False]
    assert {(r.job, r.namespace, r.max_tokens) for r in waiting} == {("job", "adapter", 8)}


def test_a_job_has_arrived_when_nothing_comes_for_many_passes() -> None:
    receiver = OfflineReceiver(RequestPool(COST, 1000))
    take(receiver, 1)
    for _ in range(64):
        receiver.pass_begins()
    assert not receiver.quiet
    receiver.pass_begins()
    assert receiver.quiet
    receiver.take(plain_request(job_ids.make_rid("other", 1, 0), [1]))
    assert not receiver.quiet


def test_an_abort_names_one_waiting_request_or_those_of_a_job_or_all() -> None:
    pool = RequestPool(COST, 1000)
    receiver = OfflineReceiver(pool)
    rids = {job: [job_ids.make_rid(job, 2, index) for index in range(2)] for job in ("a", "b")}
    for rid in (*rids["a"], *rids["b"]):
        receiver.take(plain_request(rid, [1, 2]))

    def aborted(rid: str, *, everything: bool = False) -> list[str]:
        order: Any = SimpleNamespace(rid=rid, abort_all=everything)
        return [request.rid for request in receiver.to_abort(order)]

    assert aborted(rids["a"][1]) == [rids["a"][1]]
    assert aborted(rids["a"][0].removesuffix("0")) in ([rids["a"][0]], rids["a"])
    assert aborted("", everything=True) == [*rids["a"], *rids["b"]]
    running = pool.table.by_rid[rids["b"][0]]
    pool.start(running)
    assert aborted(rids["b"][0]) == []
    assert aborted("chat") == []
