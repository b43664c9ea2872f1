"""Upcoming uses of prefixes, against a look at every waiting prompt.

pytest test/pool/test_upcoming.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pools import Pool, pools

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.scanner import DualScanner, Side
from sglang.srt.blendserve.pool.pool_request import shared_tokens
from sglang.srt.blendserve.pool.upcoming_use import AT_ONCE, ROOT, NextUse, Place, UpcomingUse

Ints = NDArray[np.int64]


class Scan:
    """A pool under a scan in some order, of which a part is handed out."""

    def __init__(self, pool: Pool, draw: Callable[[st.SearchStrategy], object]) -> None:
        self.pool = pool
        count = len(pool.prompts)
        self.order = np.array(draw(st.permutations(range(count))), dtype=np.int64)
        self.order = self.order[: draw(st.integers(0, count))]
        self.names = [""] * count if pool.namespaces is None else [f"n{n}" for n in pool.namespaces]
        self.scanner = DualScanner(self.order)
        self.upcoming = UpcomingUse(
            PrefixTree.build(pool.prompts, pool.namespaces), pool.prompts, self.names
        )
        self.upcoming.follow(self.scanner)
        for side in draw(st.lists(st.sampled_from(Side), max_size=self.order.size)):
            self.scanner.take(side)
        for request in draw(st.sets(st.sampled_from([*range(count)]), max_size=5)):
            if request in self.scanner:
                self.scanner.discard(request)
        handed = [r for r in range(count) if r not in self.scanner]
        self.ahead = [*draw(st.sets(st.sampled_from(handed), max_size=3))] if handed else []
        self.upcoming.serve_first(self.ahead)

    def place(self, path: list[int], cuts: list[int], name: str) -> Place:
        """The place of ``path``, reached over the depths ``cuts``."""
        place, depth = ROOT, 0
        for cut in [*sorted(cuts), len(path)]:
            place = self.upcoming.descend(place, depth, np.array(path[depth:cut], dtype=int), name)
            depth = cut
        return place

    def share(self, path: list[int], name: str, requests: list[int]) -> dict[int, int]:
        """How many tokens of ``path`` each of ``requests`` begins with."""
        tokens = np.array(path, dtype=np.int32)
        return {
            r: shared_tokens(self.pool.prompts[r], tokens)
            for r in requests
            if self.names[r] == name
        }

    def next_use(self, requests: list[int]) -> tuple[int, int] | None:
        if any(r in self.ahead for r in requests):
            return AT_ONCE
        at = [int(np.flatnonzero(self.order == r)[0]) for r in requests]
        return (min(at), max(at)) if at else None


@given(pools(least=1), st.data())
def test_places_and_uses_agree_with_a_look_at_every_prompt(pool: Pool, data: st.DataObject) -> None:
    scan = Scan(pool, data.draw)
    start = pool.prompts[data.draw(st.integers(0, len(pool.prompts) - 1))].tolist()
    path = start[: data.draw(st.integers(0, len(start)))] + data.draw(
        st.lists(st.integers(0, 3), max_size=4)
    )
    cuts = data.draw(st.lists(st.integers(0, len(path)), max_size=3))
    name = data.draw(st.sampled_from([*scan.names, "elsewhere"]))
    everybody = scan.share(path, name, [*range(len(pool.prompts))])
    waiting = [*scan.scanner.waiting().tolist(), *scan.ahead]
    waiting_share = scan.share(path, name, waiting)

    place = scan.place(path, cuts, name)
    assert place.shared == max(everybody.values(), default=0)
    if place.shared:
        below = [r for r, shared in waiting_share.items() if shared == place.shared]
        low, high = scan.upcoming.tree.leaf_start, scan.upcoming.tree.leaf_end
        leaves = scan.upcoming.tree.leaf_requests[low[place.node] : high[place.node]]
        waits, before = (of[low[place.node] : high[place.node]] for of in scan.upcoming.line())
        assert sorted(leaves[waits]) == sorted(below)
        for request, places in zip(leaves[waits], before[waits], strict=True):
            use = scan.next_use([request])
            assert use is not None
            expected = 0 if use == AT_ONCE else min(scan.upcoming.distances(NextUse(*use)))
            assert places == expected
        assert scan.upcoming.next_use(place.node) == scan.next_use(below)

    above = data.draw(st.integers(0, len(path)))
    used = scan.upcoming.used(place, above)
    most = max(waiting_share.values(), default=0)
    assert used.shared == most if most > above else used.shared <= above
    if used.shared > above:
        nearest = [r for r, shared in waiting_share.items() if shared == most]
        assert scan.upcoming.next_use(used.node) == scan.next_use(nearest)
