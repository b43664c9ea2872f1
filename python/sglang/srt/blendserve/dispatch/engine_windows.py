"""What each of several engines holds of a plan, and which of them gets the next requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.plan.scanner import Side

_FILLED = 1.5
"""An engine that holds so many times the KV tokens that fit has enough to choose from."""

_SHARE = 0.5
"""Of an engine's share in all that is left, held or not, the part that it may hold."""


class Held(NamedTuple):
    """A request that an engine holds.

    Attributes:
        engine: its number; None: nobody knows.
        side: the end of the order that it was taken from; None: from none.
        work: predicted, seconds.
        tokens: KV tokens that it is predicted to write.
    """

    engine: int | None
    side: Side | None
    work: RemainingWork
    tokens: float


@dataclass(slots=True)
class _Window:
    sides: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))
    seconds: float = 0.0
    tokens: float = 0.0


class EngineWindows:
    """The windows of engines that are fed from one order.

    An engine that has room gets more as long as it holds little: while much is left that is a whole
    window. In the end no engine is to have a queue while another one has nothing to do, so one that
    holds more requests than fit its KV cache gets no more than half of its share of what is left.
    """

    def __init__(self, engines: int, kv_slots: int) -> None:
        """``kv_slots``: tokens that the KV cache of one engine holds."""
        self._windows = [_Window() for _ in range(engines)]
        self._kv_slots = kv_slots
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        """How many engines there are."""
        return len(self._windows)

    def next_engine(
        self, rooms: Sequence[int], left: RemainingWork, idle: Sequence[bool] = ()
    ) -> int | None:
        """Return the engine that gets the next request; None: none may have more now.

        Args:
            rooms: how many requests each may still get.
            left: predicted work that no engine holds, seconds.
            idle: whether each has nothing to do, whatever it holds in the books: lines of a batch
                that is paused, say.
        """
        with_room = [number for number, room in enumerate(rooms) if room > 0]
        if len(self._windows) == 1:
            return with_room[0] if with_room else None
        held = sum(window.seconds for window in self._windows)
        share = _SHARE * (sum(left) + held) / max(sum(room >= 0 for room in rooms), 1)
        filled = _FILLED * self._kv_slots
        hungry = [
            number
            for number in with_room
            if self._windows[number].tokens < filled
            or self._windows[number].seconds < share
            or (idle and idle[number])
        ]
        return max(hungry, key=lambda number: rooms[number], default=None)

    def side(self, engine: int) -> Side:
        """Return the end of the order that an engine has fewer requests of."""
        return min(Side, key=self._windows[engine].sides.__getitem__)

    def add(self, rid: str, held: Held) -> None:
        """An engine holds a request from now on."""
        self._held[rid] = held
        self._count(held, 1)

    def remove(self, rid: str) -> RemainingWork | None:
        """Whoever held a request holds it no more; return its predicted work, None: nobody did."""
        held = self._held.pop(rid, None)
        if held is None:
            return None
        self._count(held, -1)
        return held.work

    def put_aside(self, rid: str) -> None:
        """A request that was handed over takes no place in an engine for now."""
        held = self._held.get(rid)
        if held is not None:
            self._count(held, -1)
            self._held[rid] = held._replace(engine=None)

    def lost(self, engine: int) -> None:
        """An engine has lost all that it held, which others will be given."""
        self._windows[engine] = _Window()
        for rid, held in self._held.items():
            if held.engine == engine:
                self._held[rid] = held._replace(engine=None)

    def _count(self, held: Held, sign: int) -> None:
        if held.engine is None:
            return
        window = self._windows[held.engine]
        window.seconds += sign * sum(held.work)
        window.tokens += sign * held.tokens
        if held.side is not None:
            window.sides[held.side] += sign
