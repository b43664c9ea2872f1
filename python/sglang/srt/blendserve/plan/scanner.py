"""The dual scanner (paper section 5.3): one plan order, taken from both of its sides.

The compute-bound side begins at the front of the order, the memory-bound side at its back. Each
side walks the prefix tree depth first, so neighbours share their prefix and sharing stays high.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Side(Enum):
    """The side of the scan that a request is taken from."""

    COMPUTE = "compute"
    MEMORY = "memory"


class DualScanner:
    """Hands out each request of a plan once, from either side.

    Taking, discarding and peeking cost O(1) amortised over the whole scan.
    """

    def __init__(self, order: Ints) -> None:
        """Scan ``order``: (n,) request indices, most compute-bound first, each at most once."""
        self._order = order
        size = int(order.max()) + 1 if order.size else 0
        self._position = np.full(size, -1, dtype=np.int64)
        self._position[order] = np.arange(order.size)
        if (self._position >= 0).sum() != order.size:
            raise ValueError("the order names a request twice")
        self._waiting = np.ones(order.size, dtype=np.bool_)
        # Single entries are read all the time: from a memoryview at a third of an array's cost.
        self._place_of, self._waits = self._position.data, self._waiting.data
        self._count = order.size
        self._front = 0
        self._back = order.size - 1

    def __len__(self) -> int:
        """Requests not handed out yet."""
        return self._count

    def __contains__(self, request: int) -> bool:
        """Whether ``request`` is still to be handed out."""
        if not 0 <= request < len(self._place_of):
            return False
        position = self._place_of[request]
        return position >= 0 and bool(self._waits[position])

    def peek(self, side: Side) -> int | None:
        """The next request at ``side``; None when all are handed out."""
        if self._count == 0:
            return None
        return int(self._order[self._cursor(side)])

    def take(self, side: Side) -> int:
        """Hand out the next request at ``side``. Raises IndexError when there is none."""
        request = self.peek(side)
        if request is None:
            raise IndexError("the plan has no request left")
        self.discard(request)
        return request

    def discard(self, request: int) -> None:
        """Hand ``request`` out of turn (aborted, or run for another reason).

        Raises KeyError if it is not waiting.
        """
        if not self.drop(request):
            raise KeyError(f"request {request} is not waiting in this plan")

    def drop(self, request: int) -> bool:
        """Hand ``request`` out of turn if it is waiting in this plan; say whether it was."""
        if not 0 <= request < len(self._place_of):
            return False
        position = self._place_of[request]
        if position < 0 or not self._waits[position]:
            return False
        self._waits[position] = False
        self._count -= 1
        return True

    def put_back(self, request: int) -> None:
        """Return ``request`` to its place in the order.

        Raises KeyError if it is not of this plan or still waits.
        """
        known = 0 <= request < self._position.size and self._position[request] >= 0
        if not known or request in self:
            raise KeyError(f"request {request} was not taken from this plan")
        position = int(self._position[request])
        self._waiting[position] = True
        self._count += 1
        self._front = min(self._front, position)
        self._back = max(self._back, position)

    def waiting(self) -> Ints:
        """(m,) requests not handed out yet, in scan order."""
        remaining: Ints = self._order[self._waiting]
        return remaining

    def upcoming(self, side: Side, count: int) -> Ints:
        """(<= count,) the next requests at ``side``, nearest first."""
        window = 4 * count
        if side is Side.COMPUTE:
            start = self._cursor(side) if self._count else self._order.size
            span = slice(start, start + window)
            return self._order[span][self._waiting[span]][:count]
        end = self._cursor(side) + 1 if self._count else 0
        span = slice(max(0, end - window), end)
        return self._order[span][self._waiting[span]][::-1][:count]

    # --- where requests stand in the scan -------------------------------------------------

    @property
    def front(self) -> int:
        """Scan position of the next request at the compute-bound side; 0 when none is left."""
        return self._cursor(Side.COMPUTE) if self._count else 0

    @property
    def back(self) -> int:
        """Scan position of the next request at the memory-bound side; -1 when none is left."""
        return self._cursor(Side.MEMORY) if self._count else -1

    def positions(self, requests: Ints) -> Ints:
        """(k,) scan position of each of ``requests`` (k,); -1 where it is not in this plan."""
        found = np.full(requests.size, -1, dtype=np.int64)
        known = requests < self._position.size
        found[known] = self._position[requests[known]]
        return found

    def waits_at(self, position: int) -> bool:
        """Whether the request at ``position`` still waits; False for -1."""
        return position >= 0 and bool(self._waits[position])

    def waiting_span(self, positions: Ints) -> tuple[int, int] | None:
        """The first and the last of ascending ``positions`` that still wait; None if none does.

        O(log k): what is not between the two cursors is handed out, what is between mostly waits.
        """
        low = int(np.searchsorted(positions, self.front))
        high = int(np.searchsorted(positions, self.back, side="right"))
        first = _first_set(self._waiting, positions[low:high])
        if first is None:
            return None
        last = _first_set(self._waiting, positions[low:high][::-1])
        assert last is not None
        return first, last

    def waiting_at(self, positions: Ints) -> NDArray[np.bool_]:
        """(k,) whether the request at each of ``positions`` (k,) still waits; False for -1."""
        found = positions >= 0
        found[found] = self._waiting[positions[found]]
        return found

    def _cursor(self, side: Side) -> int:
        """Position of the next waiting request at ``side``; there must be one."""
        if side is Side.COMPUTE:
            while not self._waits[self._front]:
                self._front += 1
            return self._front
        while not self._waits[self._back]:
            self._back -= 1
        return self._back


def _first_set(flags: NDArray[np.bool_], positions: Ints) -> int | None:
    """The first of ``positions`` whose flag is set; looks at ever larger windows."""
    low, window = 0, 1
    while low < positions.size:
        chosen = positions[low : low + window]
        at = int(flags[chosen].argmax())
        if flags[chosen[at]]:
            return int(chosen[at])
        low += window
        window *= 4
    return None
