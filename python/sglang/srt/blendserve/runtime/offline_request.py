"""The mark that an offline request carries inside SGLang's scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from sglang.srt.blendserve.pool.pool_request import PoolRequest


def offline_request(req: Req) -> PoolRequest | None:
    """Return the pool's side of an offline request, None for an online one."""
    return getattr(req, "blendserve", None)
