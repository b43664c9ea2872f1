"""Who is in the pool and in which state: waiting, running, given back, ended.

Requests are numbered by their arrival; a snapshot (what a plan is made of) may leave the ended ones
out and number the others anew, which the table follows when the plan is adopted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, compress

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.lengths.prior import LengthPrior
from sglang.srt.blendserve.pool.in_flight import InFlight, InFlightColumns
from sglang.srt.blendserve.pool.planner import PoolSnapshot
from sglang.srt.blendserve.pool.pool_request import PoolRequest

Bools = NDArray[np.bool_]


class RequestTable:
    """All requests of a pool, by number and by id."""

    def __init__(self) -> None:
        self.all: list[PoolRequest] = []
        self.by_rid: dict[str, PoolRequest] = {}
        """Requests that have not ended, by id."""
        self.running: dict[int, PoolRequest] = {}
        """Requests in flight by number, in the order of their admission."""
        self.returned: list[PoolRequest] = []
        """Requests given back by the engine, in the order in which they are served again."""
        self.finished: list[tuple[int, int]] = []
        """Requests that have ended by themselves: number and output tokens."""
        self.waiting = 0
        """Requests that wait and were never handed out."""
        self._columns = InFlightColumns()
        self._waits = bytearray()  # one byte a request: whether it is one of these

    def __len__(self) -> int:
        """Requests that wait, returned ones included."""
        return self.waiting + len(self.returned)

    def add(self, request: PoolRequest) -> None:
        """Let ``request`` wait. Raises ValueError if its id is already there."""
        if request.rid in self.by_rid:
            raise ValueError(f"request id {request.rid} is already in the pool")
        request.index = len(self.all)
        self.all.append(request)
        self.by_rid[request.rid] = request
        self._waits.append(True)
        self.waiting += 1

    def waits(self, index: int) -> bool:
        """Whether this request waits and was never handed out."""
        return bool(self._waits[index])

    def waiting_mask(self, requests: int) -> Bools:
        """(requests,) which of the first so many wait and were never handed out."""
        return np.frombuffer(bytes(self._waits[:requests]), dtype=np.bool_)

    def everyone_waiting(self) -> Iterator[PoolRequest]:
        """Iterate over all requests that wait: returned ones first, then by arrival."""
        return chain(self.returned, compress(self.all, self._waits))

    def begun(self) -> Iterator[PoolRequest]:
        """Iterate over the requests that are longer than what they have generated: those in flight,
        and those given back with tokens generated."""
        return chain(self.running.values(), (r for r in self.returned if r.generated))

    def start(self, request: PoolRequest) -> None:
        """``request``, which waits, is handed to the engine."""
        if self._waits[request.index]:
            self._no_longer_waits(request)
        else:
            self.returned.remove(request)
        self.running[request.index] = request
        self._columns.join(request)

    def held_otherwise(self, request: PoolRequest) -> None:
        """The ``held_tokens`` of ``request``, which is in flight, are others now."""
        self._columns.change(request)

    def in_flight(self) -> InFlight:
        """Return the requests in flight as columns."""
        return self._columns.read()

    def put_back(self, request: PoolRequest) -> None:
        """The engine returns ``request``, which was running; it is served before all others."""
        del self.running[request.index]
        self._columns.leave(request)
        self.returned.insert(0, request)

    def remove(self, request: PoolRequest) -> None:
        """``request``, which has not ended before, has ended now, in whatever state it was."""
        del self.by_rid[request.rid]
        if self._waits[request.index]:
            self._no_longer_waits(request)
        elif self.running.pop(request.index, None) is None:
            self.returned.remove(request)
        else:
            self._columns.leave(request)

    def _no_longer_waits(self, request: PoolRequest) -> None:
        self._waits[request.index] = False
        self.waiting -= 1

    # --- snapshot -----------------------------------------------------------------------------

    def mostly_ended(self, least: int) -> bool:
        """Whether a snapshot should leave out the ended requests: ``least`` of them, and most.

        Otherwise a pool that never runs empty would grow for ever.
        """
        ended = len(self.all) - len(self.by_rid)
        return ended >= least and 2 * ended >= len(self.all)

    def snapshot(self, requests: int, planned: int, prior: LengthPrior | None) -> PoolSnapshot:
        """The first so many ``requests``, of which the first ``planned`` were planned before."""
        begun = [r for r in self.begun() if r.index < requests]
        return PoolSnapshot(
            requests=self.all[:requests],
            arrived=requests,
            waiting=self.waiting_mask(requests),
            begun=np.array([r.index for r in begun], dtype=np.int64),
            generated=np.array([r.generated for r in begun], dtype=np.int64),
            finished=[*self.finished],
            prior=prior,
            planned=planned,
        )

    def newest_ended(self, most: int) -> list[int]:
        """Of each kind of unknown length (same ``max_tokens``, in half octaves) the ``most`` that
        ended last by themselves: their numbers."""
        counts: Counter[int] = Counter()
        chosen = []
        for index, _ in reversed(self.finished):
            request = self.all[index]
            kind = round(2 * math.log2(max(request.max_tokens, 1)))
            if not request.known_length and counts[kind] < most:
                counts[kind] += 1
                chosen.append(index)
        return chosen

    def snapshot_without_ended(
        self, planned: int, prior: LengthPrior | None, kept: Iterable[int]
    ) -> PoolSnapshot:
        """All requests but the ended ones, of which only those ``kept`` are there; what the others
        were is in ``prior``. See `snapshot`."""
        stay = {*kept}
        there = np.array(
            [r.index for r in self.all if r.rid in self.by_rid or r.index in stay], dtype=np.int64
        )
        begun = [*self.begun()]
        finished = [(index, tokens) for index, tokens in self.finished if index in stay]
        numbers = np.searchsorted(there, [index for index, _ in finished]).tolist()
        return PoolSnapshot(
            requests=[self.all[index] for index in there.tolist()],
            arrived=len(self.all),
            waiting=self.waiting_mask(len(self.all))[there],
            begun=np.searchsorted(there, [r.index for r in begun]),
            generated=np.array([r.generated for r in begun], dtype=np.int64),
            finished=[
                (number, tokens) for number, (_, tokens) in zip(numbers, finished, strict=True)
            ],
            prior=prior,
            planned=int(np.searchsorted(there, planned)),
        )

    def renumber(self, snapshot: PoolSnapshot) -> dict[int, int] | None:
        """Number the requests as ``snapshot`` does, those that came later behind them.

        Returns the new numbers by the old ones; None if nothing changes.
        """
        if len(snapshot.requests) == snapshot.arrived:
            return None
        everyone = [*snapshot.requests, *self.all[snapshot.arrived :]]
        number = {request.index: at for at, request in enumerate(everyone)}
        self._waits = bytearray(self._waits[request.index] for request in everyone)
        self.running = {number[index]: request for index, request in self.running.items()}
        self.finished = [(number[i], tokens) for i, tokens in self.finished if i in number]
        self.all = everyone
        for at, request in enumerate(everyone):
            request.index = at
        self._columns = InFlightColumns(self.running.values())
        return number
