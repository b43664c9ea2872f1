"""Which prefixes the annotated cache gives up, and what that saves.

pytest test/runtime/test_eviction.py
"""

from __future__ import annotations

import pytest
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.radix_cache import RadixCache
from small_cache import SmallCache
from two_releases import radix_key

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache

PREFIX = 100


def prefix(number: int) -> list[int]:
    return [1000 * number + at for at in range(PREFIX)]


def run_through(small: SmallCache, *requests: PoolRequest) -> None:
    """Start and end each of ``requests``."""
    for request in requests:
        assert small.start(request)
        small.finish(small.flights[-1], [9])


def evict(small: SmallCache, tokens: int) -> None:
    small.cache.evict(EvictParams(num_tokens=tokens))


def cached(small: SmallCache, number: int) -> int:
    """How much of prefix ``number`` is cached."""
    return small.cache.cached_tokens(radix_key(prefix(number)))


def planned(small: SmallCache, prefixes: int) -> list[PoolRequest]:
    """Two requests for each prefix, planned, in the order of the scan from its front."""
    small.arrive([[*prefix(n), 1 + same] for n in range(1, prefixes + 1) for same in range(2)])
    small.pool.plan_if_due(quiet=True)
    return [small.pool.table.all[i] for i in small.pool.current.scanner.waiting().tolist()]


def number_of(request: PoolRequest) -> int:
    return int(request.prompt[0]) // 1000


def test_what_nobody_needs_goes_first() -> None:
    small = SmallCache(1000)
    first = planned(small, 3)
    run_through(small, *first[0:2], first[2], first[4])  # nobody comes for the first prefix again
    evict(small, PREFIX)
    assert cached(small, number_of(first[0])) < PREFIX
    assert cached(small, number_of(first[2])) == PREFIX
    assert cached(small, number_of(first[4])) == PREFIX


@pytest.mark.parametrize("needed", [1, 3, 5])
def test_of_needed_prefixes_the_one_in_the_middle_of_the_scan_goes_first(needed: int) -> None:
    small = SmallCache(4000)
    scan = planned(small, 5)
    run_through(small, *scan[0::2])  # one of each pair: every prefix is needed once more
    evict(small, 5 * 2)  # their own tails, which nobody needs
    assert all(cached(small, n) == PREFIX for n in range(1, 6))
    evict(small, PREFIX)
    middle = number_of(scan[4])
    assert [n for n in range(1, 6) if cached(small, n) < PREFIX] == [middle]
    if needed > 1:
        evict(small, (needed - 1) * PREFIX)
    ends = {number_of(scan[0]), number_of(scan[8])}
    kept = {n for n in range(1, 6) if cached(small, n) == PREFIX}
    assert len(kept) == 5 - needed
    assert kept <= ends or needed == 1


def test_no_more_of_a_needed_prefix_goes_than_has_to() -> None:
    small = SmallCache(1000)
    scan = planned(small, 1)
    run_through(small, scan[0])
    evict(small, 2)  # the tail and one token of output
    evict(small, 70)
    assert cached(small, 1) == PREFIX - 70


def test_a_returned_request_keeps_its_prefix() -> None:
    small = SmallCache(1000)
    scan = planned(small, 3)
    assert small.start(scan[2])
    small.retract(small.flights[0])
    run_through(small, scan[0], scan[3], scan[5])
    evict(small, 3 * 3 + 2 * PREFIX - 20)
    assert cached(small, number_of(scan[2])) == PREFIX


def test_what_a_request_given_back_needs_is_needed_again() -> None:
    """It was chosen, its prefix was found to be needed by nobody, and then it was refused."""
    small = SmallCache(1000)
    scan = planned(small, 3)
    run_through(small, scan[0], scan[2], scan[4])
    evict(small, 3 * 2)  # the tails
    small.pool.start(scan[1])
    small.pool.start(scan[3])
    evict(small, 1)  # looks at all prefixes and takes the oldest of the two nobody waits for
    assert cached(small, number_of(scan[1])) < PREFIX
    small.pool.put_back(scan[3])
    evict(small, PREFIX)
    assert cached(small, number_of(scan[3])) == PREFIX
    assert cached(small, number_of(scan[5])) < PREFIX


def hits(kind: type[RadixCache]) -> tuple[int, int]:
    """Hit tokens and requests of a mixed scan in a cache that is too small.

    From one side of the scan come questions with four long prefixes, from the other, two for each
    of them, prompts that share nothing and fill the cache with what is never asked for again.
    """
    small = SmallCache(420, kind=kind)
    small.arrive([[*prefix(n), 7000 + i] for n in range(1, 5) for i in range(6)], max_tokens=2)
    small.arrive([[9000 + 40 * i + at for at in range(40)] for i in range(48)], max_tokens=400)
    small.pool.plan_if_due(quiet=True)
    started = 0
    while len(small.pool):
        for side in (Side.COMPUTE, Side.MEMORY, Side.MEMORY):
            request = small.pool.current.peek(side)
            if request is None:
                break
            assert small.start(request)
            small.finish(small.flights[-1], [5] * (2 if side is Side.COMPUTE else 150))
            started += 1
    small.check_memory()
    return small.hit_tokens, started


def test_prefixes_needed_soon_survive_what_least_recently_used_gives_up() -> None:
    ours, ours_started = hits(BlendRadixCache)
    lru, lru_started = hits(RadixCache)
    assert ours_started == lru_started == 72
    # Each of four prefixes is computed once and found five times.
    assert ours == 4 * 5 * PREFIX
    assert lru < ours / 2


def test_in_a_full_cache_an_ended_request_leaves_only_what_is_waited_for() -> None:
    small = SmallCache(PREFIX + 4)
    first, _ = planned(small, 1)
    assert small.start(first)
    small.finish(small.flights[0], [9])
    assert cached(small, 1) == PREFIX
    assert small.cache.total_size() == PREFIX  # neither its own last token nor its output
    small.check_memory()


@pytest.mark.parametrize("page_size", [1, 16])
def test_in_a_full_cache_requests_of_one_token_leave_the_prefix_that_others_wait_for(
    page_size: int,
) -> None:
    """They end in the step that computes their prompt, before anything of it is in the tree."""
    pages = -(-(PREFIX + 1) // page_size)
    small = SmallCache(pages * page_size, page_size=page_size)
    scan = planned(small, 2)
    for request in scan:
        assert small.end_at_once(request)
        small.check_memory()
    assert small.hit_tokens == 2 * (PREFIX // page_size * page_size)
    assert small.cache.total_size() == 0  # nobody waits for anything any more
