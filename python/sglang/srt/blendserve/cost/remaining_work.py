"""The work that is still to do, as two sums: what a pace weighs against each other."""

from __future__ import annotations

from typing import NamedTuple


class RemainingWork(NamedTuple):
    """All work still to do, in flight and in the pool, without weight loading; seconds."""

    compute: float
    memory: float
