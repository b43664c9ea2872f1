"""The requests in flight as columns, kept up as they join and leave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.pool.pool_request import PoolRequest

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class InFlight(NamedTuple):
    """m requests in flight, in the order of their admission; arrays (m,), never changed."""

    requests: list[PoolRequest]
    indices: Ints
    """Place of each request in the pool's arrays."""
    prompt_tokens: Floats
    held_tokens: Floats
    """KV tokens that each frees when it ends, without its output (`PoolRequest.held_tokens`)."""
    generated: Floats
    """Output tokens so far."""


class InFlightColumns:
    """Follows who joins and leaves; `read` costs little more than the output tokens' column."""

    def __init__(self, running: Iterable[PoolRequest] = ()) -> None:
        """``running``: requests in flight, in the order of their admission."""
        self._requests: list[PoolRequest] = []
        self._index: Ints = np.zeros(0, dtype=np.int64)
        self._fixed: Floats = np.zeros((2, 0))  # prompt and held tokens
        self._joined = {request.index: request for request in running}
        self._left: set[int] = set()
        self._changed: set[int] = set()

    def join(self, request: PoolRequest) -> None:
        """``request`` goes in flight; its ``held_tokens`` may be set until the next `read`."""
        self._joined[request.index] = request

    def leave(self, request: PoolRequest) -> None:
        """``request``, which is in flight, is so no longer."""
        if self._joined.pop(request.index, None) is None:
            self._left.add(request.index)

    def change(self, request: PoolRequest) -> None:
        """The ``held_tokens`` of ``request``, which is in flight, are others now."""
        self._changed.add(request.index)

    def read(self) -> InFlight:
        """The columns as of now."""
        if self._left:
            self._drop()
        if self._changed:
            self._look_again()
        if self._joined:
            self._append()
        requests = self._requests
        generated = np.array([r.generated for r in requests], dtype=np.float64)
        return InFlight(requests, self._index, self._fixed[0], self._fixed[1], generated)

    def _drop(self) -> None:
        left, requests = self._left, self._requests.copy()
        gone = [at for at, index in enumerate(self._index.tolist()) if index in left]
        for at in reversed(gone):
            del requests[at]
        stays = np.ones(self._index.size, dtype=np.bool_)
        stays[gone] = False
        kept = np.flatnonzero(stays)
        self._requests = requests
        self._index, self._fixed = self._index.take(kept), self._fixed.take(kept, axis=1)
        self._left = set()

    def _look_again(self) -> None:
        self._fixed = self._fixed.copy()
        for at, request in enumerate(self._requests):
            if request.index in self._changed:
                self._fixed[1, at] = request.held_tokens
        self._changed = set()

    def _append(self) -> None:
        joined = [*self._joined.values()]
        fixed = [[r.prompt.size for r in joined], [r.held_tokens for r in joined]]
        self._requests = [*self._requests, *joined]
        self._index = np.concatenate((self._index, np.array([*self._joined], dtype=np.int64)))
        self._fixed = np.concatenate((self._fixed, np.array(fixed, dtype=np.float64)), axis=1)
        self._joined = {}
