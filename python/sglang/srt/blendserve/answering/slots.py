"""The engine's slots: how many there are, and which job gets the next one that is free.

The scheduler blends whatever is in the engine without looking at completion windows, so windows
are kept before it, by what is put in and when:

Where several users have jobs, the next slot goes to one of the user who has the fewest requests in
the engine for its share, whatever others' priorities and windows are. Among one user's jobs:

0. Jobs that are not at risk get slots by their *priority*: one of a higher priority that wants a
   slot goes before all of a lower one. What follows is among those of the highest.
1. A job is *at risk* when, at the measured rate, the engine would need more than half of the
   time the job has left to finish what is in the engine and the job's own remainder. Slots go
   to jobs at risk first, the one whose window ends first before the others.
2. Otherwise slots are shared in proportion to the rate each job needs to end in time, remaining
   requests / seconds left: the next slot goes to the job with the most needed rate for each
   slot it holds. Every job gets on, all kinds of work stay in the pool to be blended, and a
   job's share grows as its end comes near.
3. Every second slot goes to the job that has the fewest requests in the engine, at risk or not. A
   small job behind a large one so gets its slots at once, and no job, however urgent, keeps
   another one out: with J jobs waiting each gets a slot in at most 2 J.
4. No more is in the engine than it finishes in `TURNAROUND` seconds, so a job with an hour to
   go never waits for more than that behind work that was put in before it.

The command `run` is one job that has all the time there is, and no turnaround to keep.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sglang.srt.blendserve.answering.rate_meter import RateMeter

TURNAROUND = 900.0
"""Seconds of work that may be in the engine at once."""

FIRST_SLOTS = 1024
"""Slots while the engine's rate is not known."""

FEWEST_SLOTS = 256
"""Fewest slots, however slow the engine: fewer would leave its running batch half empty."""

UNKNOWN_RATE_SECONDS = 3600.0
"""While the engine's rate is not known, a job with less time than this left may be late."""

_RISK = 0.5


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job that wants a slot still has to do.

    Attributes:
        remaining: requests not answered, those in the engine included.
        in_flight: those in the engine.
        seconds_left: until its completion window ends; 0 or less: it has ended; infinite: there
            is none.
        priority: the higher, the sooner.
        user: whose it is.
        share: of the slots that this user has, beside others.
    """

    remaining: int
    in_flight: int
    seconds_left: float
    priority: int = 0
    user: str | None = None
    share: float = 1.0

    @property
    def needed_rate(self) -> float:
        """Requests per second that the job needs to end in time."""
        return self.remaining / max(self.seconds_left, 1.0)


def at_risk(demand: Demand, in_flight: int, rate: float | None) -> bool:
    """Whether a job may miss its deadline.

    Args:
        demand: the job's.
        in_flight: requests in the engine, of all jobs.
        rate: requests per second that the engine answers, None: not known.
    """
    if not rate:
        return False
    ahead = in_flight - demand.in_flight
    return (ahead + demand.remaining) / rate > _RISK * demand.seconds_left


def first_served(demands: Sequence[Demand], in_flight: int, rate: float | None) -> list[int]:
    """Return the indices of the jobs among which the next slot is shared: those of the highest
    priority that wait for one, and all that are at risk.

    Args:
        demands: of the jobs that wait for a slot; at least one.
        in_flight: requests in the engine, of all jobs.
        rate: requests per second that the engine answers, None: not known.
    """
    highest = max(demand.priority for demand in demands)
    return [
        index
        for index, demand in enumerate(demands)
        if demand.priority == highest or _may_be_late(demand, in_flight, rate)
    ]


def _may_be_late(demand: Demand, in_flight: int, rate: float | None) -> bool:
    if rate:
        return at_risk(demand, in_flight, rate)
    return demand.seconds_left < UNKNOWN_RATE_SECONDS


def next_in_line(demands: Iterable[Demand], in_flight: int, rate: float | None) -> int:
    """Return the index of the job that gets the next slot; on a tie the first.

    Args:
        demands: of the jobs that wait for a slot; at least one.
        in_flight: requests in the engine, of all jobs.
        rate: requests per second that the engine answers, None: not known.
    """

    def order(indexed: tuple[int, Demand]) -> tuple[int, float, int]:
        index, demand = indexed
        if at_risk(demand, in_flight, rate):
            return 0, demand.seconds_left, index
        return 1, -demand.needed_rate / (demand.in_flight + 1), index

    return min(enumerate(demands), key=order)[0]


def fewest_in_flight(demands: Iterable[Demand]) -> int:
    """Return the index of the job with the fewest requests in the engine; on a tie the first."""
    return min(enumerate(demands), key=lambda indexed: indexed[1].in_flight)[0]


def next_user(demands: Iterable[Demand], in_flight: Mapping[str | None, int]) -> str | None:
    """Return the user whose jobs the next slot is for: the one with the fewest requests in the
    engine (``in_flight``) for its share; on a tie the first.

    Args:
        demands: of the jobs that wait for a slot, or will in a moment; at least one.
        in_flight: requests of each user in the engine.
    """
    return min(demands, key=lambda demand: in_flight.get(demand.user, 0) / demand.share).user


def slot_count(rate: float | None, most: int) -> int:
    """Return how many requests may be in the engine, so that none waits for a turnaround.

    Args:
        rate: requests per second that the engine answers, None: not known.
        most: the setting's limit.
    """
    if rate is None:
        return min(FIRST_SLOTS, most)
    return min(max(int(rate * TURNAROUND), FEWEST_SLOTS), most)


@dataclass(eq=False, slots=True)
class _Waiter:
    demand: Callable[[], Demand]
    size: int
    granted: asyncio.Future[None]


class SlotPool:
    """Lets so many requests, and so many bytes of request lines, into the engine at once.

    A request larger than all the bytes there are gets in when the engine is otherwise empty.

    Attributes:
        in_flight: requests in the engine.
        meter: what they come to; the number of slots and their order follow from its rate.
    """

    def __init__(
        self, max_requests: int, max_bytes: int | None, meter: RateMeter, *, turnaround: bool = True
    ) -> None:
        """Make the slots.

        Args:
            max_requests: most requests in the engine at once.
            max_bytes: most bytes of their lines, None: no limit.
            meter: measures what the engine gets done.
            turnaround: whether no more is let in than the engine finishes in `TURNAROUND` seconds.
        """
        self.in_flight = 0
        self.meter = meter
        self._max_requests = max_requests
        self._max_bytes = sys.maxsize if max_bytes is None else max_bytes
        self._turnaround = turnaround
        self._bytes = 0
        self._turns: Counter[str | None] = Counter()
        self._of_user: Counter[str | None] = Counter()
        self._waiting: list[_Waiter] = []
        self._wanting: dict[object, tuple[Callable[[], bool], Callable[[], Demand]]] = {}

    @property
    def slots(self) -> int:
        """How many requests may be in the engine now."""
        if not self._turnaround:
            return self._max_requests
        return slot_count(self.meter.request_rate(), self._max_requests)

    def register(
        self, job: object, wants: Callable[[], bool], demand: Callable[[], Demand]
    ) -> None:
        """Hold slots back for a job between two of its lines, of which only one waits at a time:
        else each second slot that comes free with others would go to a lower priority.

        Args:
            job: what to `forget` it by.
            wants: whether it will want a slot in a moment.
            demand: what the job still has to do.
        """
        self._wanting[job] = wants, demand

    def forget(self, job: object) -> None:
        """Hold nothing back for a job any more."""
        self._wanting.pop(job, None)
        self.look_again()

    def look_again(self) -> None:
        """Give away what was held back for a job that does not want it any more."""
        self._grant()

    async def take(self, size: int, demand: Callable[[], Demand]) -> None:
        """Wait for a slot for a request line of ``size`` bytes; `give_back` it later.

        Args:
            size: bytes.
            demand: what the job still has to do, asked for whenever a slot is given away.
        """
        waiter = _Waiter(demand, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._grant()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            if not waiter.granted.cancelled():  # given a slot and cancelled at once
                self.give_back(size, demand().user)
            raise

    def give_back(self, size: int, user: str | None = None) -> None:
        """Free the slot of a request line of ``size`` bytes, of a job of ``user``."""
        self.in_flight -= 1
        self._of_user[user] -= 1
        self._bytes -= size
        self._grant()

    def _grant(self) -> None:
        self._waiting = [waiter for waiter in self._waiting if not waiter.granted.cancelled()]
        while self._waiting and self.in_flight < self.slots:
            rate = self.meter.request_rate()
            demands = [waiter.demand() for waiter in self._waiting]
            held_for = [demand() for wants, demand in self._wanting.values() if wants()]
            everyone = [*demands, *held_for]
            user = next_user(everyone, self._of_user)
            own = [index for index, demand in enumerate(everyone) if demand.user == user]
            first = first_served([everyone[index] for index in own], self.in_flight, rate)
            first = [own[index] for index in first if own[index] < len(demands)]
            if not first:
                return  # a user who has too few, or a job of a higher priority, wants them all
            served = [demands[index] for index in first]
            if self._turns[user] % 2:
                chosen = fewest_in_flight(served)
            else:
                chosen = next_in_line(served, self.in_flight, rate)
            waiter = self._waiting[first[chosen]]
            if self.in_flight and self._bytes + waiter.size > self._max_bytes:
                return  # it goes next, when there is room; the others do not overtake it
            del self._waiting[first[chosen]]
            self._turns[user] += 1
            if not self.in_flight:
                self.meter.start()
            self.in_flight += 1
            self._of_user[user] += 1
            self._bytes += waiter.size
            waiter.granted.set_result(None)
