"""What the other parts of the runtime may see of the scheduler, and no more.

`SchedulerView` is for those who watch: the step record and the report of the pool's state.
`LaneScheduler` is for the loop that drives SGLang's scheduler on two lanes. Both are protocols:
`BlendScheduler` has these members, and so has the plain object of a test. Nothing here imports
SGLang's scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

    from sglang.srt.blendserve.policy.named import AnyStepPolicy
    from sglang.srt.blendserve.pool.request_pool import RequestPool
    from sglang.srt.blendserve.runtime.cache.cached_prefixes import CacheUse
    from sglang.srt.blendserve.runtime.ranks import RankGroup
    from sglang.srt.blendserve.runtime.record.step_timer import StepTimer


class SlotAllocator(Protocol):
    """SGLang's allocator of KV slots, as far as it is read here."""

    def available_size(self) -> int:
        """Return how many slots are free."""


class PrefixCache(Protocol):
    """SGLang's prefix cache, as far as it is read here."""

    def evictable_size(self) -> int:
        """Return how many slots hold cached tokens that no request in flight uses."""


@dataclass(frozen=True, slots=True)
class KvCacheSlots:
    """The slots of the KV cache, one for each token, as of the moment they are asked for."""

    total: int
    """Slots of the whole cache, in tokens."""
    allocator: SlotAllocator
    cache: PrefixCache

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return self.allocator.available_size()

    @property
    def evictable(self) -> int:
        """Slots that hold cached tokens which no request in flight uses."""
        return self.cache.evictable_size()

    @property
    def obtainable(self) -> int:
        """Slots that a new request can get: free ones, and evictable ones."""
        return int(self.free + self.evictable)


class Evictions(NamedTuple):
    """Tokens evicted from the prefix cache since the scheduler started."""

    tokens: int = 0
    needed: int = 0
    """Evicted tokens that a waiting request would have used."""


class SchedulerView(Protocol):
    """What may be read of the scheduler between two steps."""

    forward_ct: int
    """SGLang's number of the last forward pass."""
    pool: RequestPool
    step_policy: AnyStepPolicy
    retractions: int
    """Offline requests retracted since the scheduler started."""
    planner_failures: int
    """Times that the planner failed since the scheduler started."""
    first_started_at: float | None
    """When the first offline request was started, Unix seconds."""

    @property
    def kv_cache(self) -> KvCacheSlots:
        """The slots of the KV cache."""

    @property
    def evictions(self) -> Evictions:
        """What has been evicted; nothing is counted in a prefix cache of SGLang's own."""

    @property
    def parked(self) -> int:
        """Offline requests that sit steps out beside online ones."""

    def online_figures(self) -> dict[str, Any]:
        """Return what online requests feel (seconds), see `BesideOnline.figures`."""

    def lane_state(self) -> dict[str, Any] | None:
        """Return the counts of the two lanes, None where there is one."""

    def cache_use(self) -> CacheUse | None:
        """Return what is cached, by what the plan says of it; some milliseconds' work.

        None in a prefix cache of SGLang's own.
        """


class OnlineScheduler(Protocol):
    """What `BesideOnline` reads, sets and calls of SGLang's scheduler, and of ours in its place."""

    waiting_queue: list[Req]
    chunked_req: Req | None
    max_total_num_tokens: int
    model_config: Any
    pool: RequestPool
    step_timer: StepTimer
    offline_receiver: Any
    overlap: Any

    @property
    def ranks(self) -> RankGroup:
        """The ranks that must take the same decisions in every step."""

    @property
    def kv_cache(self) -> KvCacheSlots:
        """The slots of the KV cache."""

    @property
    def online_chunk(self) -> bool:
        """Whether the prompt that is partly computed is an online request's."""

    def cached_tokens(self, req: Req) -> int:
        """Return how many tokens of ``req``, which waits, the prefix cache holds now."""

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None: ...


class LaneScheduler(Protocol):
    """What the loop over two lanes reads, sets and calls of SGLang's scheduler, which says what
    each of these is; `pool` and `kv_cache` are ours."""

    pool: RequestPool
    beside: Any
    waiting_queue: list[Req]
    chunked_req: Req | None
    running_batch: ScheduleBatch
    last_batch: ScheduleBatch | None
    batch_result_processor: Any
    gracefully_exit: bool
    _engine_paused: bool
    model_config: Any
    request_receiver: Any
    invariant_checker: Any
    tp_worker: Any

    @property
    def kv_cache(self) -> KvCacheSlots:
        """The slots of the KV cache."""

    def process_input_requests(self, messages: list[Any]) -> None: ...
    def process_pending_chunked_abort(self) -> None: ...
    def stash_chunked_request(self, req: Req) -> None: ...
    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> Any: ...
    def update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch: ...
    def run_batch(self, batch: ScheduleBatch) -> Any: ...
    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None: ...
    def on_idle(self) -> None: ...
