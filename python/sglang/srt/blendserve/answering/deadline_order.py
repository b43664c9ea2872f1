"""Which batch gets the next free slot of the engine, and how many slots there are.

The scheduler blends whatever is in the engine without looking at completion windows, so windows
are kept before it, by what is put in and when:

1. A batch is *at risk* when, at the measured rate, the engine would need more than half of the
   time the batch has left to finish what is in the engine and the batch's own remainder. Slots go
   to batches at risk first, the one whose window ends first before the others.
2. Otherwise slots are shared in proportion to the rate each batch needs to end in time, remaining
   requests / seconds left: the next slot goes to the batch with the most needed rate for each
   slot it holds. Every batch gets on, all kinds of work stay in the pool to be blended, and a
   batch's share grows as its end comes near.
3. No more is in the engine than it finishes in `TURNAROUND` seconds, so a batch with an hour to
   go never waits for more than that behind work that was put in before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TURNAROUND = 900.0
"""Seconds of work that may be in the engine at once."""

FIRST_SLOTS = 1024
"""Slots while the engine's rate is not known."""

FEWEST_SLOTS = 256
"""Slots however slow the engine: fewer would leave its batch half empty."""

_RISK = 0.5


@dataclass(frozen=True, slots=True)
class Demand:
    """What a batch that wants a slot still has to do.

    Attributes:
        remaining: requests not answered, those in the engine included.
        in_flight: those in the engine.
        seconds_left: until its completion window ends; 0 or less: it has ended.
    """

    remaining: int
    in_flight: int
    seconds_left: float

    @property
    def needed_rate(self) -> float:
        """Requests per second it takes to end in time."""
        return self.remaining / max(self.seconds_left, 1.0)


def at_risk(demand: Demand, in_flight: int, rate: float | None) -> bool:
    """Whether a batch may miss its end.

    Args:
        demand: the batch's.
        in_flight: requests in the engine, of all batches.
        rate: requests per second that the engine answers, None: not known.
    """
    if not rate:
        return False
    ahead = in_flight - demand.in_flight
    return (ahead + demand.remaining) / rate > _RISK * demand.seconds_left


def next_in_line(demands: Iterable[Demand], in_flight: int, rate: float | None) -> int:
    """Return the index of the batch that gets the next slot; on a tie the first.

    Args:
        demands: of the batches that wait for a slot; at least one.
        in_flight: requests in the engine, of all batches.
        rate: requests per second that the engine answers, None: not known.
    """

    def order(indexed: tuple[int, Demand]) -> tuple[int, float, int]:
        index, demand = indexed
        if at_risk(demand, in_flight, rate):
            return 0, demand.seconds_left, index
        return 1, -demand.needed_rate / (demand.in_flight + 1), index

    return min(enumerate(demands), key=order)[0]


def slots(rate: float | None, most: int) -> int:
    """Return how many requests may be in the engine.

    Args:
        rate: requests per second that the engine answers, None: not known.
        most: the setting's limit.
    """
    if rate is None:
        return min(FIRST_SLOTS, most)
    return min(max(int(rate * TURNAROUND), FEWEST_SLOTS), most)
