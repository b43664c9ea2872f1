"""Shared prefixes of the requests in flight: what each is alone with, whoever starts and ends."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pools import Pool, pools

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.pool.planner import Ancestors
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.shared_prefixes import SharedPrefixes


def users(flights: list[PoolRequest]) -> dict[tuple[int, ...], int]:
    """How many requests in flight begin with each prefix, namespace included."""
    count: dict[tuple[int, ...], int] = {}
    for request in flights:
        for end in range(1, request.prompt.size + 1):
            prefix = (int(request.namespace), *request.prompt[:end].tolist())
            count[prefix] = count.get(prefix, 0) + 1
    return count


def alone_with(request: PoolRequest, count: dict[tuple[int, ...], int]) -> int:
    """Tokens of ``request``'s prompt that no other request in flight begins with."""
    name, prompt = int(request.namespace), request.prompt.tolist()
    return sum(count[(name, *prompt[:end])] == 1 for end in range(1, len(prompt) + 1))


@given(pools(least=1, most=12), st.data())
def test_everyone_holds_what_no_other_request_in_flight_uses(
    pool: Pool, data: st.DataObject
) -> None:
    names = pool.namespaces if pool.namespaces is not None else np.zeros(len(pool.prompts))
    requests = [
        PoolRequest(f"r{at}", prompt, 8, namespace=str(int(names[at])), index=at)
        for at, prompt in enumerate(pool.prompts)
    ]
    changed: list[PoolRequest] = []
    prefixes = SharedPrefixes(changed.append)
    prefixes.follow(Ancestors.of(PrefixTree.build(pool.prompts, pool.namespaces)), [])
    flights: list[PoolRequest] = []
    for number in data.draw(st.lists(st.integers(0, len(requests) - 1), max_size=30)):
        request, before = requests[number], {r.rid: r.held_tokens for r in flights}
        changed.clear()
        if request in flights:
            prefixes.leave(request)
            flights.remove(request)
        else:
            footprint = prefixes.footprint(request)
            request.held_tokens = footprint.exclusive
            lost = {other.rid: 0 for other, _ in footprint.newly_shared}
            for other, tokens in footprint.newly_shared:
                lost[other.rid] += tokens
            prefixes.enter(request)
            for other in flights:
                assert other.held_tokens == before[other.rid] - lost.get(other.rid, 0)
            flights.append(request)
        count = users(flights)
        for other in flights:
            assert other.held_tokens == alone_with(other, count)
            if before.get(other.rid, other.held_tokens) != other.held_tokens:
                assert other in changed


@given(pools(least=1, most=12), st.data())
def test_another_tree_of_the_same_requests_changes_nothing(pool: Pool, data: st.DataObject) -> None:
    requests = [PoolRequest(f"r{n}", p, 8, namespace="0", index=n) for n, p in
                enumerate(pool.prompts)]  # fmt: skip
    flights = [r for r in requests if data.draw(st.booleans())]
    prefixes = SharedPrefixes(lambda _: None)
    prefixes.follow(Ancestors.of(PrefixTree.build(pool.prompts)), [])
    for request in flights:
        request.held_tokens = prefixes.footprint(request).exclusive
        prefixes.enter(request)
    held = [r.held_tokens for r in flights]
    prefixes.follow(Ancestors.of(PrefixTree.build(pool.prompts)), flights)
    assert [r.held_tokens for r in flights] == held
    assert sum(held) + sum(n > 1 for n in users(flights).values()) == len(users(flights))
