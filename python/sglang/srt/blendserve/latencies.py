"""Latencies that online requests are to keep beside a batch, as they are written in flags."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Target:
    """A latency that online requests are to keep, in seconds or as a multiple of an idle engine's.

    Attributes:
        seconds: the latency; None where it is a multiple.
        times: multiple of the latency without offline requests; infinite for no target.
    """

    seconds: float | None
    times: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target written as milliseconds (``500``), a multiple (``1.5x``) or ``off``.

        Raises:
            ValueError: it is none of these; the message says what is wrong.
        """
        written = text.strip().lower()
        if written == "off":
            return cls(None)
        found = re.fullmatch(r"([0-9]*\.?[0-9]+)(x?)", written)
        if found is None:
            raise ValueError("give milliseconds (500), a multiple of an idle engine's (2x) or off")
        number, relative = float(found[1]), bool(found[2])
        if relative and not number > 1:
            raise ValueError("a multiple must be above 1x: that is an engine without a batch")
        if not number > 0:
            raise ValueError("it must be more than 0 milliseconds")
        return cls(None, number) if relative else cls(number / 1000)

    def over(self, idle: float) -> float:
        """Return the target in seconds, for requests that an idle engine gives ``idle`` seconds."""
        return self.times * idle if self.seconds is None else self.seconds


class LatencyTargets(NamedTuple):
    """The targets of online requests."""

    ttft: Target
    """Time to first token."""
    tpot: Target
    """Time per output token after the first."""
