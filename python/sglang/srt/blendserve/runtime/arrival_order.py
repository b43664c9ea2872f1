"""What becomes of offline requests when their planner fails: they go by arrival, as stock has it.

A fault in the plan or the policy must not end the scheduler, and with it the server and everybody's
batches. The pool's requests are handed over to SGLang's own waiting queue, in the order in which
they came, and a new pool takes over when the engine has been empty.
"""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.managers.schedule_batch import Req

from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.compat import seams

logger = logging.getLogger(__name__)


def hand_over(pool: RequestPool, waiting_queue: list[Req]) -> list[Req]:
    """Return the pool's requests that are not in the engine, by arrival, without their mark.

    Those in the engine lose their mark, too: if they are retracted they wait with the others.

    Args:
        pool: the pool, in whatever state a fault has left it; of no use afterwards.
        waiting_queue: SGLang's; what is in it already is not returned.
    """
    queued = {id(req) for req in waiting_queue}
    left = []
    # Known by their ids until they have ended: the one table that no step on the way leaves out.
    for request in sorted(pool.table.by_rid.values(), key=lambda request: request.index):
        req: Req = request.payload
        req.blendserve = None
        # One that the policy had taken out when it failed is neither in the pool nor in a batch.
        gone = req.finished() or req.to_finish is not None or seams.holds_kv(req)
        if not gone and id(req) not in queued:
            left.append(req)
    return left


def log_failure(pool: RequestPool, error: Exception) -> None:
    """Say, with a traceback and the pool's state, that offline requests go by arrival now."""
    table, current = pool.table, pool.current
    state: dict[str, Any] = {
        "waiting": len(table),
        "running": len(table.running),
        "returned": len(table.returned),
        "requests": len(table.all),
        "ended": len(table.finished),
        "planned": current.requests,
        "plans": current.orders,
    }
    logger.error(
        "BlendServe's planner failed (%s: %s); the offline requests that are here go by arrival "
        "until the engine is empty. Please report this. State: %s",
        type(error).__name__,
        error,
        state,
        exc_info=error,
    )
