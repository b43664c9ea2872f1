"""SGLang's requests in flight, read for the step policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.offline_request import offline_request

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


def engine_state(
    running: list[Req],
    online: list[Req],
    chunked: Req | None,
    *,
    used_slots: int,
    free_requests: int,
    online_growth_ratio: float,
    cached_tokens: Callable[[PoolRequest], int],
) -> EngineState:
    """Return what the step policy is told before a step.

    ``online``: those of the ``running`` requests that are not of the pool. ``chunked``: the request
    whose prompt is partly computed. ``online_growth_ratio``: share of the output tokens still
    allowed to online requests that room is kept for (SGLang's new token ratio). ``used_slots``,
    ``free_requests`` and ``cached_tokens``: as in `EngineState`.
    """
    chunk = None if chunked is None else offline_request(chunked)
    growth = sum(r.sampling_params.max_new_tokens - len(r.output_ids) for r in online)
    left = 0
    if chunk is not None and chunked is not None:
        left = len(chunked.full_untruncated_fill_ids) - seams.prefix_tokens(chunked)
    return EngineState(
        running=len(running),
        kv_tokens=sum([len(r.origin_input_ids) + len(r.output_ids) for r in running]),
        used_slots=used_slots,
        cached_tokens=cached_tokens,
        free_requests=free_requests,
        online_growth=growth * online_growth_ratio,
        chunk=chunk,
        chunk_tokens=left,
    )
