"""One job's part of an order over all jobs, taken from both of its ends by one or more engines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.scanner import Side

PIECE = 64
"""Requests that an engine gets from one end of the order before another engine goes on there."""

_MOST_FILL = 1 / 16
"""A piece is full with requests that are predicted to fill such a part of a KV cache: the few with
the longest answers go to many engines, which all end with them."""

_PIECES_LEFT = 4
"""Pieces that an engine finds at the least in what is left, so that none has much to do alone."""

_LONGEST = 4 * PIECE
"""Requests that a piece may have where they belong together, be it near the end."""


class DividedOrder:
    """The requests of one job in scan order. Who waits is known elsewhere; nobody who has been
    handed over waits again.

    With several engines each takes a *piece* of neighbours at a time from either end, so that what
    shares a prefix is computed by one engine, once. Near the end pieces become short, and an engine
    that finds nothing at the ends takes half of what another one has left of a piece.
    """

    def __init__(
        self,
        order: NDArray[np.int64],
        engines: int = 1,
        together: Callable[[int, int], bool] = lambda one, other: False,
        fill: Callable[[int], float] = lambda index: 0.0,
    ) -> None:
        """Divide ``order`` among ``engines``.

        Args:
            order: (n,) numbers of the requests, most compute-bound first.
            together: whether two neighbours of the order belong to one engine.
            fill: the part of a KV cache that a request is predicted to fill.
        """
        self._order = order.data
        self._front, self._back = 0, order.size - 1
        self._together, self._fill = together, fill
        self._pieces: list[dict[Side, deque[int]]] = [
            {side: deque() for side in Side} for _ in range(engines)
        ]

    def peek(self, engine: int, side: Side, waits: Callable[[int], bool]) -> int | None:
        """The number of the next request at ``side`` that ``waits``, for an engine; None when
        nobody does any more."""
        piece = self._pieces[engine][side]
        while True:
            while piece:
                if waits(piece[0]):
                    return piece[0]
                piece.popleft()
            self._cut(piece, side, waits)
            if not piece and not self._steal(piece):
                return None

    def _cut(self, piece: deque[int], side: Side, waits: Callable[[int], bool]) -> None:
        """Begin a piece at ``side`` of what nobody has; nothing if there is none."""
        engines, left = len(self._pieces), self._back - self._front + 1
        size = 1 if engines == 1 else max(1, min(PIECE, left // (_PIECES_LEFT * engines)))
        fill = 0.0
        while self._front <= self._back and len(piece) < _LONGEST:
            index = int(self._order[self._front if side is Side.COMPUTE else self._back])
            if waits(index):
                is_long = len(piece) >= size or fill > _MOST_FILL
                if piece and is_long and not (engines > 1 and self._together(piece[-1], index)):
                    return
                piece.append(index)
                fill += self._fill(index)
            if side is Side.COMPUTE:
                self._front += 1
            else:
                self._back -= 1

    def _steal(self, piece: deque[int]) -> bool:
        """Take the farther half of the longest piece there is; say whether there was one."""
        longest = max((p for sides in self._pieces for p in sides.values()), key=len)
        for _ in range((len(longest) + 1) // 2):
            piece.appendleft(longest.pop())
        return bool(piece)
