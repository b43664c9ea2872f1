"""The time that a run may take: what batch queues and borrowed machines give it."""

from __future__ import annotations

import argparse
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from sglang.srt.blendserve.run.failure import INTERRUPTED, TIME_IS_UP

_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_TIME = re.compile(r"(?=.)" + "".join(rf"(?:(\d+){unit})?" for unit in _UNITS))


_LONGEST = 10 * 365 * 86_400


class TimeIsUp(KeyboardInterrupt):
    """The deadline has come; whatever keeps things in order on Ctrl-C does so on this, too."""


class Deadline:
    """When a run has to stop. It counts from the start of this process: on a slow disk, importing
    SGLang alone takes half a minute.

    Attributes:
        seconds: the time that there is, None: as much as it takes.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._ends = None if seconds is None else psutil.Process().create_time() + seconds

    @property
    def left(self) -> float | None:
        """Seconds left, at least 0; None: as much as it takes."""
        return None if self._ends is None else max(self._ends - time.time(), 0.0)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise `TimeIsUp` in the context when the time is up; for work that asks nobody.

        To be used in the main thread.
        """
        left = self.left
        if left is None:
            yield
            return
        before = signal.signal(signal.SIGALRM, _interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6))  # 0 would be: never
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def duration(text: str) -> float:
    """Return the seconds of a flag's value: ``90``, ``90s``, ``50m``, ``2h``, ``1h30m``, ``1d``.

    Raises:
        argparse.ArgumentTypeError: it is none of these, or no time at all.
    """
    found = _TIME.fullmatch(text)
    seconds: float = 0
    if text.isdecimal():
        seconds = int(text)
    elif found is not None:
        parts = zip(found.groups(), _UNITS.values(), strict=True)
        seconds = sum(int(number or 0) * unit for number, unit in parts)
    if not 0 < seconds < _LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text} is no time; give seconds (5400) or hours, minutes and seconds (1h30m)"
        )
    return seconds


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise TimeIsUp


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a run that was interrupted."""
    return TIME_IS_UP if isinstance(interrupt, TimeIsUp) else INTERRUPTED
