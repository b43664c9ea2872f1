"""One job's part of an order over all jobs, taken from both of its ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.scanner import Side


class BothEnds:
    """The requests of one job in scan order. Who waits is known elsewhere; nobody who has been
    handed over waits again."""

    def __init__(self, order: NDArray[np.int64]) -> None:
        """``order``: (n,) numbers of the requests, most compute-bound first."""
        self._order = order.data
        self._front, self._back = 0, order.size - 1

    def peek(self, side: Side, waits: Callable[[int], bool]) -> int | None:
        """The number of the next request at ``side`` that ``waits``; None when none does."""
        while self._front <= self._back:
            at = self._front if side is Side.COMPUTE else self._back
            index = int(self._order[at])
            if waits(index):
                return index
            if side is Side.COMPUTE:
                self._front += 1
            else:
                self._back -= 1
        return None
