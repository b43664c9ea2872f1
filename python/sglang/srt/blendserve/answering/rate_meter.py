"""How fast requests and tokens get done, over the last minute or so."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from sglang.srt.blendserve.store.tally import Tally

_WINDOW = 60.0
_FEWEST = 8


class Rates(NamedTuple):
    """Per second, over the meter's window."""

    requests: float
    input_tokens: float
    output_tokens: float


class RateMeter:
    """A sliding window over what has been done; each call takes constant time on average."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: deque[tuple[float, Tally]] = deque()
        self._sum = Tally()
        self._since = clock()

    def start(self) -> None:
        """Work begins after a time of idleness, which is not to be counted."""
        self._drop_old()
        if not self._events:
            self._since = self._clock()

    def add(self, tally: Tally) -> None:
        """Count something done just now."""
        self._drop_old()
        self._events.append((self._clock(), tally))
        self._sum = self._sum.plus(tally)

    def rates(self) -> Rates:
        """Return the rates over the last minute, or since work began if that is shorter."""
        self._drop_old()
        seconds = max(min(self._clock() - self._since, _WINDOW), 1e-3)
        done = self._sum
        return Rates(
            (done.completed + done.failed) / seconds,
            done.input_tokens / seconds,
            done.output_tokens / seconds,
        )

    def request_rate(self) -> float | None:
        """Return requests per second, or None while too few are done to tell."""
        rates = self.rates()
        return rates.requests if len(self._events) >= _FEWEST else None

    def _drop_old(self) -> None:
        oldest = self._clock() - _WINDOW
        while self._events and self._events[0][0] < oldest:
            self._sum = self._sum.minus(self._events.popleft()[1])
