"""The engine's slots, shared by all batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sglang.srt.blendserve.answering import deadline_order
from sglang.srt.blendserve.answering.deadline_order import Demand
from sglang.srt.blendserve.answering.rate_meter import RateMeter


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

    def __init__(self, max_requests: int, max_bytes: int, meter: RateMeter) -> None:
        self.in_flight = 0
        self.meter = meter
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._bytes = 0
        self._waiting: list[_Waiter] = []

    @property
    def slots(self) -> int:
        """How many requests may be in the engine now."""
        return deadline_order.slots(self.meter.request_rate(), self._max_requests)

    async def take(self, size: int, demand: Callable[[], Demand]) -> None:
        """Wait for a slot for a request line of ``size`` bytes; `give_back` it later.

        Args:
            size: bytes.
            demand: what the batch still has to do, asked for whenever a slot is given away.
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
                self.give_back(size)
            raise

    def give_back(self, size: int) -> None:
        """Free the slot of a request line of ``size`` bytes."""
        self.in_flight -= 1
        self._bytes -= size
        self._grant()

    def _grant(self) -> None:
        self._waiting = [waiter for waiter in self._waiting if not waiter.granted.cancelled()]
        while self._waiting and self.in_flight < self.slots:
            demands = [waiter.demand() for waiter in self._waiting]
            chosen = deadline_order.next_in_line(demands, self.in_flight, self.meter.request_rate())
            waiter = self._waiting[chosen]
            if self.in_flight and self._bytes + waiter.size > self._max_bytes:
                return  # it goes next, when there is room; the others do not overtake it
            del self._waiting[chosen]
            if not self.in_flight:
                self.meter.start()
            self.in_flight += 1
            self._bytes += waiter.size
            waiter.granted.set_result(None)
