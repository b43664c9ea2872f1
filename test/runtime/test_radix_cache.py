"""The annotated radix cache: annotations against a recount, memory, eviction order.

pytest test/runtime/test_radix_cache.py
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from small_cache import SmallCache
from two_releases import NAMESPACES, radix_key

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.pool.pool_request import shared_tokens
from sglang.srt.blendserve.runtime.cache.integrity import check_integrity, nodes, planned
from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache
from sglang.srt.blendserve.runtime.compat import seams

_PIECES = ([1] * 3, [1, 1, 2, 2, 2], [2] * 7, [3, 1, 1, 1, 2], [4, 4])
prompts = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=4).map(
    lambda parts: [token for part in parts for token in part]
)
outputs = st.lists(st.integers(1, 4), max_size=6)
namespaces = st.sampled_from(["", *NAMESPACES])


def unneeded_tokens(cache: BlendRadixCache) -> int:
    """Tokens at the ends of the evictable leaves that no waiting request begins with."""
    total = 0
    waiting = planned(cache.pool)
    for node, path in nodes(cache):
        if node in cache.evictable_leaves:
            used = max(
                (
                    shared_tokens(request.prompt, path)
                    for request in waiting
                    if request.namespace == seams.namespace(node.key)
                ),
                default=0,
            )
            total += min(path.size - used // cache.page_size * cache.page_size, len(node.key))
    return total


class Workday(RuleBasedStateMachine):
    """Any sequence of what happens to cache and pool."""

    @initialize(
        page_size=st.sampled_from([1, 1, 4]),
        slots=st.sampled_from([24, 60, 400]),
        always=st.booleans(),
    )
    def begin(self, page_size: int, slots: int, always: bool) -> None:
        self.small = SmallCache(slots, page_size)
        self.always_checked = always  # a check annotates every node

    @rule(new=st.lists(prompts, min_size=1, max_size=6), namespace=namespaces)
    def arrive(self, new: list[list[int]], namespace: str) -> None:
        self.small.arrive(new, namespace=namespace)

    @precondition(lambda self: self.small.pool.current.unplanned)
    @rule()
    def plan(self) -> None:
        assert self.small.pool.plan_if_due(quiet=True)

    @precondition(lambda self: not self.small.pool.current.unplanned)
    @rule()
    def order_anew(self) -> None:
        again = self.small.pool.plan_if_due(quiet=True)
        assert again == (self.small.pool.current.made is not None)

    @precondition(lambda self: len(self.small.pool.current.scanner))
    @rule(side=st.sampled_from(Side))
    def start(self, side: Side) -> None:
        request = self.small.pool.current.peek(side)
        assert request is not None
        self.small.start(request)

    @precondition(lambda self: self.small.pool.table.returned)
    @rule()
    def start_returned(self) -> None:
        self.small.start(self.small.pool.table.returned[0])

    @precondition(lambda self: self.small.flights)
    @rule(data=st.data(), output=outputs)
    def finish(self, data: st.DataObject, output: list[int]) -> None:
        self.small.finish(data.draw(st.sampled_from(self.small.flights)), output)

    @precondition(lambda self: self.small.flights)
    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        self.small.retract(data.draw(st.sampled_from(self.small.flights)))

    @precondition(lambda self: self.small.flights)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.small.abort(data.draw(st.sampled_from(self.small.flights)))

    @precondition(lambda self: len(self.small.pool))
    @rule(data=st.data())
    def abort_waiting(self, data: st.DataObject) -> None:
        self.small.pool.forget(
            data.draw(st.sampled_from([*self.small.pool.table.everyone_waiting()]))
        )

    @rule(tokens=st.integers(1, 30))
    def evict(self, tokens: int) -> None:
        cache = self.small.cache
        evictable = cache.evictable_size()
        unneeded, needed_before = unneeded_tokens(cache), cache.evicted_needed_tokens
        evicted = cache.evict(EvictParams(num_tokens=tokens)).num_tokens_evicted
        if unneeded >= tokens:
            assert cache.evicted_needed_tokens == needed_before
        assert evicted >= min(tokens, evictable)
        assert cache.evictable_size() == evictable - evicted

    @rule(tokens=prompts, namespace=namespaces)
    def look_up(self, tokens: list[int], namespace: str) -> None:
        counted = self.small.cache.cached_tokens(radix_key(tokens, namespace))
        assert counted == self.small.look_up(tokens, namespace).size

    @precondition(lambda self: not self.small.flights)
    @rule()
    def flush(self) -> None:
        self.small.flush()

    @rule()
    def check_annotations(self) -> None:
        check_integrity(self.small.cache)

    @invariant()
    def annotations_are_right(self) -> None:
        if hasattr(self, "small") and self.always_checked:
            check_integrity(self.small.cache)

    @invariant()
    def no_slot_is_lost(self) -> None:
        if hasattr(self, "small"):
            self.small.check_memory()


Workday.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWorkday = Workday.TestCase
