"""The order in which requests reach SGLang's queue in the full simulation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang.srt.blendserve.simulator import arrivals
from sglang.srt.blendserve.simulator.arrivals import Arrivals
from sglang.srt.blendserve.simulator.longest_jobs import LongestJobs

RIDS = [f"r{i}" for i in range(5)]


class Scheduler:
    """A waiting queue and nothing else."""

    def __init__(self) -> None:
        self.waiting_queue: list[Any] = []

    def process_input_requests(self, requests: list[Any]) -> None:
        self.waiting_queue += requests


@pytest.fixture(autouse=True)
def plain_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_arrival", lambda rid, prompt, limit: SimpleNamespace(rid=rid))


def taken(scheduler: Scheduler, feed: Arrivals) -> list[str]:
    """Take one request after the other from the head of the queue, as long as there are any."""
    order = []
    feed.feed()
    while scheduler.waiting_queue:
        order.append(scheduler.waiting_queue.pop(0).rid)
        feed.feed()
    return order


def test_what_is_retracted_waits_behind_all_that_have_not_arrived() -> None:
    scheduler = Scheduler()
    feed = Arrivals(scheduler, RIDS, [None] * 5, [9] * 5, 2)
    feed.feed()
    first = scheduler.waiting_queue.pop(0)
    assert feed.retracted(first)
    assert taken(scheduler, feed) == ["r1", "r2", "r3", "r4", "r0"]


def test_without_a_window_sglang_keeps_its_own_queue() -> None:
    scheduler = Scheduler()
    feed = Arrivals(scheduler, RIDS, [None] * 5, [9] * 5, 0)
    feed.feed()
    assert [r.rid for r in scheduler.waiting_queue] == RIDS
    assert not feed.retracted(scheduler.waiting_queue[0])


def test_longest_jobs_first_follows_what_has_ended() -> None:
    scheduler = Scheduler()
    jobs = LongestJobs([0, 0, 0, 1, 1], 2)
    feed = Arrivals(scheduler, RIDS, [None] * 5, [9] * 5, 1, jobs)
    feed.feed()
    first = scheduler.waiting_queue.pop(0)
    assert first.rid == "r0"  # nothing seen yet: the first job
    feed.ended(SimpleNamespace(rid="r0", output_ids=[5] * 10))
    assert taken(scheduler, feed) == ["r3", "r4", "r1", "r2"]
