"""What the annotated cache says of what it holds.

pytest test/runtime/test_cached_prefixes.py
"""

from __future__ import annotations

from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from small_cache import SmallCache

from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.runtime.cache.cached_prefixes import CacheUse
from sglang.srt.blendserve.runtime.cache.integrity import check_integrity

PREFIX = 20


def pairs(small: SmallCache, prefixes: int) -> list[PoolRequest]:
    """Two requests for each prefix, planned, in the order of the scan from its front."""
    small.arrive(
        [
            [*range(100 * n, 100 * n + PREFIX), 1 + same]
            for n in range(1, prefixes + 1)
            for same in range(2)
        ]
    )
    small.pool.plan_if_due(quiet=True)
    return [small.pool.table.all[i] for i in small.pool.current.scanner.waiting().tolist()]


def run_through(small: SmallCache, *requests: PoolRequest) -> None:
    for request in requests:
        assert small.start(request)
        small.finish(small.flights[-1], [9])


def test_tokens_are_told_apart_by_when_they_are_needed() -> None:
    small = SmallCache(10_000)
    scan = pairs(small, 1200)
    # Positions 10, 300, 1198 from the front, and 11 from the back; of each pair one still waits.
    run_through(small, scan[10], scan[300], scan[1198], scan[-12])
    run_through(small, scan[50], scan[51])  # nobody comes for this prefix again
    use = small.cache.use()
    assert (use.soon, use.next, use.later, use.unknown) == (2 * PREFIX, PREFIX, PREFIX, 0)
    assert use.unneeded == small.cache.total_size() - 4 * PREFIX
    assert use.compute_bound + use.memory_bound == use.hits == 4 * PREFIX
    check_integrity(small.cache)


def test_a_prefix_counts_once_and_saves_each_request_that_waits_for_it() -> None:
    small = SmallCache(1000)
    requests = small.arrive([[*range(PREFIX), 100 + n] for n in range(9)])
    small.pool.plan_if_due(quiet=True)
    assert small.cache.use() == CacheUse()
    run_through(small, requests[0])
    use = small.cache.use()
    assert use.soon == use.compute_bound + use.memory_bound == PREFIX
    assert use.hits == 8 * PREFIX
    small.pool.forget(requests[5])
    assert small.cache.use().hits == 7 * PREFIX


def test_without_a_plan_nobody_needs_what_is_cached() -> None:
    small = SmallCache(1000)
    assert small.cache.use() == CacheUse()
    run_through(small, *pairs(small, 5))
    small.cache.follow(None)
    assert small.cache.use() == CacheUse(unneeded=small.cache.total_size())


def test_after_another_plan_a_large_cache_is_looked_at_bit_by_bit() -> None:
    small = SmallCache(60_000)
    run_through(small, *pairs(small, 250))  # each leaves a prefix, and two ends
    pairs(small, 3)  # another plan: the nodes of 250 prefixes have a place in its tree to find
    unknown = [small.cache.use().unknown for _ in range(6)]
    assert 0 < unknown[0] < small.cache.total_size()
    assert unknown == sorted(unknown, reverse=True)
    assert unknown[-1] == 0
    # The first three of the prefixes are needed again: twice the prefix, and each its own token.
    assert small.cache.use().hits == 3 * 2 * (PREFIX + 1)


def test_the_first_part_of_a_split_node_is_needed_by_all_who_begin_with_it() -> None:
    small = SmallCache(1000)
    above, ends = [*range(PREFIX)], [[100, 101], [200, 201], [300, 301]]
    small.arrive([above + ends[0]])
    small.pool.plan_if_due(quiet=True)
    assert small.start(next(small.pool.table.everyone_waiting()))
    small.arrive([above + end for end in ends])
    small.pool.plan_if_due(quiet=True)
    check_integrity(small.cache)  # annotates the one node there is
    scan = [small.pool.table.all[i] for i in small.pool.current.scanner.waiting().tolist()]
    for request in scan:
        if request.prompt[-1] != 101:
            assert small.start(request)
            break
    check_integrity(small.cache)


def test_to_ask_changes_no_decision() -> None:
    """Ranks of a tensor parallel group publish their metrics at different times."""
    left = []
    for asks in (False, True):
        small = SmallCache(2000)
        for round_ in range(6):
            scan = pairs(small, 20)
            run_through(small, *scan[round_ : 18 + round_])
            if asks:
                small.cache.use()
            small.cache.evict(EvictParams(num_tokens=150 + 10 * round_))
            for request in scan[:round_] + scan[18 + round_ :]:
                small.pool.forget(request)
        left.append(
            sorted((leaf.key.token_ids[0], len(leaf.key)) for leaf in small.cache.evictable_leaves)
        )
    assert left[0] == left[1]
    assert left[0]
