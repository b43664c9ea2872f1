"""How many more lines each of several engines may get, counted by those who hand them over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Rooms(NamedTuple):
    """The engines at one moment.

    Attributes:
        free: lines that each may still get; below 0: it is not there.
        losses: how often each has lost all that it had.
        idle: whether each has nothing to do, whatever it was handed; empty: not known.
    """

    free: list[int]
    losses: list[int]
    idle: Sequence[bool] = ()


class EnginePlace(NamedTuple):
    """A place in an engine's window, from the handing over of a line to its result.

    Attributes:
        engine: the engine's number.
        losses: how often it had lost all that it had before.
    """

    engine: int
    losses: int


class EngineRooms:
    """The windows of several engines. May be used from any thread."""

    def __init__(self, engines: int, window: int) -> None:
        """``window``: most lines in one engine. All are taken to be there."""
        self._window = window
        self._held = [0] * engines
        self._losses = [0] * engines
        self._there = [True] * engines
        self.idle: Callable[[], Sequence[bool]] = tuple
        """Returns whether each engine has nothing to do; set by those who know."""
        self.on_leave: Callable[[], None] = lambda: None
        """Called whenever a line leaves, in whatever thread that is noted."""
        self._lock = threading.Lock()

    def now(self) -> Rooms:
        """Return how many lines each engine may still get."""
        with self._lock:
            free = [
                max(self._window - held, 0) if there else -1
                for held, there in zip(self._held, self._there, strict=True)
            ]
            return Rooms(free, [*self._losses], self.idle())

    def take(self, engine: int) -> EnginePlace:
        """A line is handed over to an engine."""
        with self._lock:
            self._held[engine] += 1
            return EnginePlace(engine, self._losses[engine])

    def leave(self, place: EnginePlace) -> None:
        """A line has its result, or goes elsewhere."""
        with self._lock:
            if self._losses[place.engine] == place.losses:
                self._held[place.engine] -= 1
        self.on_leave()

    def lost(self, engine: int) -> None:
        """An engine is gone, with all that it had."""
        with self._lock:
            self._there[engine] = False
            self._held[engine] = 0
            self._losses[engine] += 1

    def joined(self, engine: int) -> None:
        """An engine is there, with nothing in it."""
        with self._lock:
            self._there[engine] = True
