"""How far the offline requests in flight are, read off SGLang's own requests."""

from __future__ import annotations

from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req

from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.compat import seams


def note_progress(pool: RequestPool) -> None:
    """Tell ``pool`` how far its requests in flight are, and which have left the engine."""
    for request in [*pool.table.running.values()]:
        req: Req = request.payload
        request.generated = len(req.output_ids)
        if req.finished_reason is not None:
            if isinstance(req.finished_reason, FINISH_ABORT):
                pool.forget(request)
            else:
                pool.finish(request, request.generated)
        elif req.to_finish is not None and not seams.holds_kv(req):
            pool.forget(request)  # aborted for want of memory: it never runs again
