"""Ranks that measure other times allow the same steps: all learn what the first one saw.

pytest test/runtime/test_ranks_beside_online.py
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from plain_view import plain_request
from pools import COST

from sglang.srt.blendserve.cost.step_times import StepLoad
from sglang.srt.blendserve.latencies import LatencyTargets, Target
from sglang.srt.blendserve.runtime.beside_online import BesideOnline


class Rank:
    """A scheduler whose engine takes ``seconds`` for each decoding request of a step."""

    def __init__(self, seconds: float, sent: deque[tuple[float, ...]], *, first: bool) -> None:
        self.seconds, self.sent, self.first = seconds, sent, first
        scheduler: Any = SimpleNamespace(
            waiting_queue=[],
            chunked_req=None,
            online_chunk=False,
            overlap=None,
            offline_receiver=SimpleNamespace(closed=False),
            step_timer=SimpleNamespace(last_seconds=seconds),
            ranks=self,
            cached_tokens=lambda req: 0,
        )
        targets = LatencyTargets(Target.parse("400"), Target.parse("200"))
        self.beside = BesideOnline(scheduler, targets, COST)
        self.beside.clock = lambda: 1000 * seconds

    def of_first(self, *values: float) -> tuple[float, ...]:
        if self.first:
            self.sent.append(values)
            return values
        sent = self.sent.popleft()
        assert len(sent) == len(values)
        return sent

    def steps(self) -> None:
        for decodes in (1, 3, 30, 90) * 20:
            load = StepLoad(decodes=decodes, kv_tokens=500 * decodes)
            self.beside.add(load, 0.01 + self.seconds * decodes)

    def allows(self) -> int:
        self.steps()
        self.beside.look([plain_request("chat", [0] * 500, output_ids=[0])])
        assert self.beside._allowance is not None
        return self.beside._allowance.decodes([500.0] * 1000)


def test_all_ranks_park_alike() -> None:
    sent: deque[tuple[float, ...]] = deque()
    first, second = Rank(0.002, sent, first=True), Rank(0.005, sent, first=False)
    for _ in range(3):
        allowed = first.allows()
        assert 1 < allowed < 1000
        assert second.allows() == allowed
        assert not sent
