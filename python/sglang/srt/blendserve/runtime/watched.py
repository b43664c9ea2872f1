"""What others may see of the scheduler (`view`), as it follows from what the scheduler holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.runtime.cache.cached_prefixes import CacheUse
from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache
from sglang.srt.blendserve.runtime.view import Evictions, KvCacheSlots

if TYPE_CHECKING:
    from sglang.srt.blendserve.runtime.beside_online import BesideOnline
    from sglang.srt.blendserve.runtime.overlap.overlap_loop import OverlapLoop


class Watched:
    """Read-only members of `BlendScheduler`, beside SGLang's own."""

    max_total_num_tokens: int
    token_to_kv_pool_allocator: Any
    tree_cache: Any
    beside: BesideOnline
    overlap: OverlapLoop | None = None
    """Set while two lanes run (``--blendserve-overlap``)."""

    @property
    def kv_cache(self) -> KvCacheSlots:
        """The slots of the KV cache."""
        return KvCacheSlots(
            self.max_total_num_tokens, self.token_to_kv_pool_allocator, self.tree_cache
        )

    @property
    def blend_cache(self) -> BlendRadixCache | None:
        """The prefix cache, if it is the one that knows the plan."""
        return self.tree_cache if isinstance(self.tree_cache, BlendRadixCache) else None

    @property
    def evictions(self) -> Evictions:
        """What has been evicted; nothing is counted in a prefix cache of SGLang's own."""
        cache = self.blend_cache
        if cache is None:
            return Evictions()
        return Evictions(cache.evicted_tokens, cache.evicted_needed_tokens)

    @property
    def parked(self) -> int:
        """Offline requests that sit steps out beside online ones."""
        return len(self.beside.parking.parked)

    def online_figures(self) -> dict[str, Any]:
        """Return what online requests feel, see `BesideOnline.figures`."""
        return self.beside.figures()

    def lane_state(self) -> dict[str, Any] | None:
        """Return the counts of the two lanes, None where there is one."""
        return None if self.overlap is None else self.overlap.state()

    def cache_use(self) -> CacheUse | None:
        """Return what the prefix cache holds, by who needs it; None for SGLang's own cache."""
        return None if self.blend_cache is None else self.blend_cache.use()
