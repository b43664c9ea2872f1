"""A prefix cache on a small KV pool, driven as SGLang's scheduler drives it, without a model.

Cache, allocators and pool are the real ones; only the forward pass is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import (
    EvictParams,
    InsertParams,
    MatchPrefixParams,
    MatchResult,
)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixCache, TreeNode
from two_releases import matched_slots, radix_key, release_at_once

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache

COST = CostModel(ModelSpec.named("Llama-3-8B"), DeviceSpec.named("A100-80G"))


def make_cache(
    kind: type[RadixCache], slots: int, page_size: int = 1, eviction_policy: str = "lru"
) -> RadixCache:
    """A cache of ``kind`` over ``slots`` KV slots on the CPU."""
    allocator = (
        TokenToKVPoolAllocator(slots, torch.float16, "cpu", None, need_sort=False)
        if page_size == 1
        else PagedTokenToKVPoolAllocator(
            slots, page_size, torch.float16, "cpu", None, need_sort=False
        )
    )
    return kind(
        CacheInitParams(
            disable=False,
            req_to_token_pool=None,
            token_to_kv_pool_allocator=allocator,
            page_size=page_size,
            eviction_policy=eviction_policy,
        )
    )


@dataclass
class Flight:
    """A request in flight: the KV it holds."""

    request: PoolRequest
    node: TreeNode
    own: torch.Tensor
    """Slots of the part of its prompt that it computes itself, whole pages."""


@dataclass
class SmallCache:
    """A cache and the pool of requests that use it."""

    slots: int
    page_size: int = 1
    kind: type[RadixCache] = BlendRadixCache
    eviction_policy: str = "lru"
    flights: list[Flight] = field(default_factory=list)
    hit_tokens: int = 0
    arrived: int = 0

    def __post_init__(self) -> None:
        self.cache = make_cache(self.kind, self.slots, self.page_size, self.eviction_policy)
        # Each time it may, the pool orders what waits anew, whatever has been learned meanwhile.
        always = PlanningRules(learn_least=0, learn_growth=0.0, drift=-1.0)
        self.pool = RequestPool(COST, self.slots, rules=always)
        if isinstance(self.cache, BlendRadixCache):
            self.cache.follow(self.pool)

    def arrive(
        self, prompts: list[list[int]], max_tokens: int = 8, namespace: str = ""
    ) -> list[PoolRequest]:
        """Let requests with these prompts wait."""
        made = [
            PoolRequest(
                rid=f"r{self.arrived + at}",
                prompt=np.array(prompt, dtype=np.int32),
                max_tokens=max_tokens,
                known_length=True,
                namespace=namespace,
            )
            for at, prompt in enumerate(prompts)
        ]
        self.arrived += len(made)
        for request in made:
            self.pool.add(request)
        return made

    def start(self, request: PoolRequest) -> bool:
        """Compute the prompt of ``request``: as much as is not cached. False if it does not fit."""
        tokens = request.prompt.tolist()
        match = self._match(tokens, request.namespace)
        slots = self._slots(match)
        cached = len(slots)
        self.cache.inc_lock_ref(match.last_device_node)
        own = self._alloc(self._whole_pages(len(tokens)) - cached)
        if own is None:
            self.cache.dec_lock_ref(match.last_device_node)
            return False
        self.hit_tokens += cached
        self.pool.start(request)
        self._insert(tokens, torch.cat((slots, own)), request.namespace, cached)
        node = self._match(tokens, request.namespace).last_device_node
        self.cache.inc_lock_ref(node)
        self.cache.dec_lock_ref(match.last_device_node)
        self.flights.append(Flight(request, node, own))
        return True

    def finish(self, flight: Flight, output: list[int]) -> None:
        """End ``flight`` with these output tokens, which stay cached if they are worth it."""
        request = flight.request
        keep = None
        if isinstance(self.cache, BlendRadixCache):
            keep = self.cache.worth_keeping(request)
        if keep is not None:
            self.cache.dec_lock_ref(flight.node)
            self.cache.drop_behind(flight.node, self._whole_pages(request.prompt.size), keep)
            self.flights.remove(flight)
            self.pool.finish(request, len(output))
            return
        tokens = request.prompt.tolist() + output
        prompt_slots = self._slots(self._match(request.prompt.tolist(), request.namespace))
        own = self._alloc(self._whole_pages(len(tokens)) - len(prompt_slots))
        if own is not None:
            slots = torch.cat((prompt_slots, own))
            self._insert(tokens, slots, request.namespace, len(prompt_slots))
        self.cache.dec_lock_ref(flight.node)
        self.flights.remove(flight)
        self.pool.finish(request, len(output))

    def end_at_once(self, request: PoolRequest) -> bool:
        """Run ``request`` to its end in one step: its first output token is its last.

        As SGLang releases it, with nothing of it cached before. False if it does not fit.
        """
        tokens = request.prompt.tolist()
        match = self._match(tokens, request.namespace)
        prefix = self._slots(match)
        cached = len(prefix)
        self.cache.inc_lock_ref(match.last_device_node)
        own = self._alloc(-(-len(tokens) // self.page_size) * self.page_size - cached)
        if own is None:
            self.cache.dec_lock_ref(match.last_device_node)
            return False
        self.hit_tokens += cached
        self.pool.start(request)
        row = torch.cat((prefix, own))[: len(tokens)]
        release_at_once(self.cache, match.last_device_node, request, row, cached)
        self.pool.finish(request, 1)
        return True

    def retract(self, flight: Flight) -> None:
        """Take the memory of ``flight`` back; it keeps its turn."""
        self.cache.dec_lock_ref(flight.node)
        self.flights.remove(flight)
        self.pool.put_back(flight.request)

    def abort(self, flight: Flight) -> None:
        """End ``flight`` without a result."""
        self.cache.dec_lock_ref(flight.node)
        self.flights.remove(flight)
        self.pool.forget(flight.request)

    def flush(self) -> None:
        """What ``flush_cache`` does; nothing may be in flight."""
        assert not self.flights
        self.cache.reset()
        self.cache.token_to_kv_pool_allocator.clear()

    def look_up(self, tokens: list[int], namespace: str = "") -> NDArray[np.int64]:
        """The slots that cache ``tokens``; splits a node that they end in."""
        return self._slots(self._match(tokens, namespace)).numpy()

    def check_memory(self) -> None:
        """Assert that every slot is free or cached, and none both."""
        cache, allocator = self.cache, self.cache.token_to_kv_pool_allocator
        cached = cache.total_size()
        assert cached == cache.evictable_size() + cache.protected_size()
        assert allocator.available_size() + cached == self.slots

    def _slots(self, match: MatchResult) -> torch.Tensor:
        return matched_slots(self.cache, match)

    def _match(self, tokens: list[int], namespace: str) -> MatchResult:
        return self.cache.match_prefix(MatchPrefixParams(key=radix_key(tokens, namespace)))

    def _insert(self, tokens: list[int], slots: torch.Tensor, namespace: str, cached: int) -> None:
        key = radix_key(tokens, namespace)
        found = self.cache.insert(InsertParams(key=key, value=slots)).prefix_len
        self.cache.token_to_kv_pool_allocator.free_segment(slots[cached:found], start_pos=cached)

    def _alloc(self, tokens: int) -> torch.Tensor | None:
        allocator = self.cache.token_to_kv_pool_allocator
        if allocator.available_size() < tokens:
            self.cache.evict(EvictParams(num_tokens=tokens - allocator.available_size()))
        return allocator.alloc(tokens) if tokens else torch.zeros(0, dtype=torch.int64)

    def _whole_pages(self, tokens: int) -> int:
        return tokens // self.page_size * self.page_size
