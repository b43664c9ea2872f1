"""What the runtime's parts see of a scheduler, as plain objects: no SGLang, no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from pools import COST

from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.cache.cached_prefixes import CacheUse
from sglang.srt.blendserve.runtime.view import Evictions, KvCacheSlots

SLOTS = 5000


def kv_cache(free: int, evictable: int) -> KvCacheSlots:
    """A KV cache with so many slots free and evictable."""
    allocator = SimpleNamespace(available_size=lambda: free)
    return KvCacheSlots(SLOTS, allocator, SimpleNamespace(evictable_size=lambda: evictable))


@dataclass
class PlainView:
    """As `view.SchedulerView`, of whatever is set."""

    pool: RequestPool = field(default_factory=lambda: RequestPool(COST, SLOTS))
    kv_cache: KvCacheSlots = field(default_factory=lambda: kv_cache(1000, 200))
    step_policy: Any = field(default_factory=lambda: SimpleNamespace(budget=(64, 128)))
    evictions: Evictions = field(default_factory=Evictions)
    retractions: int = 0
    planner_failures: int = 0
    first_started_at: float | None = None
    forward_ct: int = 0
    cached: CacheUse | None = None
    parked: int = 0
    lanes: dict[str, Any] | None = None
    online: dict[str, Any] = field(default_factory=dict)

    def online_figures(self) -> dict[str, Any]:
        return self.online

    def lane_state(self) -> dict[str, Any] | None:
        return self.lanes

    def cache_use(self) -> CacheUse | None:
        return self.cached


def plain_request(rid: str, prompt: list[int], *, max_tokens: int = 8, **given: Any) -> Any:
    """A request as SGLang has it, as far as the runtime's parts read it."""
    known = {
        "rid": rid,
        "origin_input_ids": prompt,
        "output_ids": [],
        "extra_key": None,
        "cache_salt": None,
        "sampling_params": SimpleNamespace(
            max_new_tokens=max_tokens, ignore_eos=False, stop_strs=[]
        ),
        "to_finish": None,
        "finished": lambda: False,
    }
    return SimpleNamespace(**known | given)


def offline(prompt: int, generated: int, side: Any) -> Any:
    """A running request of the pool, from ``side`` of the scan."""
    request = PoolRequest("", np.zeros(prompt, dtype=np.int32), 100, side=side)
    request.generated = generated
    return plain_request("", [0] * prompt, output_ids=[0] * generated, blendserve=request)
