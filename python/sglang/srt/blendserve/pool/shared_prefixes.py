"""Who of the requests in flight uses which shared prefix, so that its KV is counted once and as
long as anybody uses it (docs/scheduling.md, "Memory").

What only one request in flight uses is freed when that one ends, and counts among what it holds.
What several use is freed by none of them: it is in use whatever ends, until one is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from sglang.srt.blendserve.pool.planner import Ancestors
from sglang.srt.blendserve.pool.pool_request import PoolRequest


class KVFootprint(NamedTuple):
    """KV of a request's prompt beside the requests in flight, which share some of its prefixes."""

    exclusive: int
    """Tokens of the prompt that no request in flight uses: the request would hold them alone.

    What it computes besides, since the one who computes the same is not ready, is given up when
    both are."""
    newly_shared: list[tuple[PoolRequest, int]]
    """Requests that so far held tokens of its prefixes alone and would no longer, with how many."""

    def needs(self, uncached: int, generated: int) -> int:
        """KV slots that cannot be had for others once it starts and can be until then.

        ``uncached``: those of its tokens that are to be computed. Besides these it locks what is
        cached and nobody uses. ``generated``: its output tokens so far.
        """
        return max(uncached, self.exclusive + generated)


class SharedPrefixes:
    """The nodes of the plan's prefix tree that requests in flight use.

    Entering and leaving cost as many operations as there are nodes above the request.
    """

    def __init__(self, changed: Callable[[PoolRequest], None]) -> None:
        """``changed``: told of each request whose ``held_tokens`` are changed here."""
        self._changed = changed
        self._ancestors: Ancestors | None = None
        self._users: dict[int, dict[str, PoolRequest]] = {}

    def follow(self, ancestors: Ancestors, running: Iterable[PoolRequest]) -> None:
        """Go by the nodes of another tree, in which the ``running`` requests are."""
        if ancestors is self._ancestors:
            return
        self._ancestors = ancestors
        self._users = {}
        for request in running:
            if ancestors.above(request.index):
                self._hold(request, self.footprint(request).exclusive)
                self.enter(request)

    def footprint(self, request: PoolRequest) -> KVFootprint:
        """What ``request``, which is not in flight, would hold and share if it started now."""
        used, newly_shared = 0, []
        for node, tokens in self._path(request):
            users = self._users.get(node)
            if users is None:
                continue
            used += tokens
            if len(users) == 1:
                (other,) = users.values()
                newly_shared.append((other, tokens))
        return KVFootprint(request.prompt.size - used, newly_shared)

    def beyond(self, request: PoolRequest, tokens: int) -> list[int]:
        """Nodes of shared prefixes of ``request`` that reach beyond its first ``tokens``."""
        return [] if self._ancestors is None else self._ancestors.beyond(request.index, tokens)

    def enter(self, request: PoolRequest) -> None:
        """``request`` starts."""
        for node, tokens in self._path(request):
            users = self._users.get(node)
            if users is None:
                self._users[node] = {request.rid: request}
                continue
            if len(users) == 1:
                (other,) = users.values()
                self._hold(other, other.held_tokens - tokens)
            users[request.rid] = request

    def leave(self, request: PoolRequest) -> None:
        """``request`` is no longer in flight; who is then alone with a prefix holds it."""
        for node, tokens in self._path(request):
            users = self._users.get(node)
            if users is None or users.pop(request.rid, None) is None:
                continue
            if not users:
                del self._users[node]
            elif len(users) == 1:
                (alone,) = users.values()
                self._hold(alone, alone.held_tokens + tokens)

    def _hold(self, request: PoolRequest, tokens: int) -> None:
        request.held_tokens = tokens
        self._changed(request)

    def _path(self, request: PoolRequest) -> list[tuple[int, int]]:
        """Shared nodes above ``request``, deepest first, and the length of their segments."""
        return [] if self._ancestors is None else self._ancestors.above(request.index)
