"""Where marked requests enter the pool instead of SGLang's waiting queue."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import numpy as np

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.compat import seams

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import AbortReq
    from sglang.srt.managers.schedule_batch import Req

_QUIET_PASSES = 64
"""Scheduling passes without an arrival after which a job is taken to have arrived."""

_FREEZE_ARRIVALS = 1024
"""Arrivals after which what is there is taken out of the garbage collector's sight."""


class OfflineReceiver:
    """Takes marked requests into a pool, and finds those to be aborted."""

    def __init__(self, pool: RequestPool) -> None:
        self._pool = pool
        self._passes_since_arrival = 0
        self._arrived = 0
        self._froze: bool | None = None
        self.closed = False
        """Whether nothing is wanted until the engine is empty."""

    @property
    def quiet(self) -> bool:
        """Whether nothing has arrived lately."""
        return self._passes_since_arrival > _QUIET_PASSES

    def pass_begins(self) -> None:
        """Count a scheduling pass; to be called once in each."""
        self._passes_since_arrival += 1

    def wants(self, req: Req) -> bool:
        """Return whether ``req`` belongs into the pool.

        A request that is already known to fail only passes through SGLang to report its error.
        """
        if self.closed:
            return False
        marked = job_ids.parse_rid(req.rid) is not None
        known = req.rid in self._pool.table.by_rid
        return marked and not (known or req.to_finish is not None or req.finished())

    def take(self, req: Req) -> None:
        """Let ``req``, which the pool `wants`, wait there."""
        mark = job_ids.parse_rid(req.rid)
        assert mark is not None
        parameters = req.sampling_params
        req.blendserve = PoolRequest(
            rid=req.rid,
            prompt=np.array(req.origin_input_ids, dtype=np.int64).astype(np.int32),
            max_tokens=parameters.max_new_tokens,
            known_length=bool(parameters.ignore_eos and not parameters.stop_strs),
            job=mark.job,
            job_requests=mark.total,
            namespace=seams.namespace(req),
            payload=req,
        )
        self._pool.add(req.blendserve)
        self._passes_since_arrival = 0
        self._arrived += 1
        if self._arrived % _FREEZE_ARRIVALS == 0:
            # Every full collection would visit every object of every request: more than a second
            # for 100,000 of them. Reference counts free them all the same.
            if self._froze is None:
                # Not if somebody else has frozen what was there before. Counting walks through
                # all that is frozen, so it is done once.
                self._froze = gc.get_freeze_count() == 0
            gc.freeze()

    def rest(self) -> None:
        """Start afresh: the engine is empty. The garbage collector sees everything again."""
        self.closed = False
        if self._froze:
            gc.unfreeze()
        self._froze = None

    def to_abort(self, order: AbortReq) -> list[PoolRequest]:
        """Return the waiting requests that ``order`` names: one, those of a job, or all."""
        table = self._pool.table
        if order.abort_all:
            return [*table.everyone_waiting()]
        request = table.by_rid.get(order.rid)
        if request is not None:  # no other id begins with a whole one
            return [] if request.index in table.running else [request]
        return [r for r in table.everyone_waiting() if r.rid.startswith(order.rid)]
