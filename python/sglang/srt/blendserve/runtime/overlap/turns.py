"""Whether prefill and decode run at once on a divided device, or in turns on the whole of it.

Two lanes cost each other time: each has a part of the SMs, weights are read once for each, and
kernels get in each other's way. Where that costs more than running at once saves, as on a device
whose decodes are compute-bound at large batches, one after the other is faster. Both are known from
measured times, so both can be predicted for the work that is left:

    at once     max(P / v_p(i), D / v_d(i)), see `sm_split`
    in turns    P / V_p + D / V_d, with the speeds V of a lane that has the device to itself

Nothing here reads a clock or knows a GPU.
"""

from __future__ import annotations

import logging
import math

logger = logging.getLogger(__name__)

_SMOOTHING = 0.2
"""Weight of a new measurement in the running mean of the logarithm of a speed."""

_HYSTERESIS = 0.05
"""Change only for what is better by this part of the time."""

_MEASURED = 3
"""Prefills and decodes in turns before they may run at once again. Unproven."""


class _Alone:
    """The speed of a lane that has the device to itself, cost-model seconds of work a second.

    Before it was measured it is as good as it can be: what the cost model says.
    """

    def __init__(self) -> None:
        self._log = 0.0
        self.seen = 0

    def observe(self, work: float, seconds: float) -> None:
        if not (work > 0 and seconds > 0):
            return
        log = math.log(min(max(work / seconds, 1e-9), 1e9))
        self._log = self._log + _SMOOTHING * (log - self._log) if self.seen else log
        self.seen += 1

    @property
    def speed(self) -> float:
        return math.exp(self._log)


class Turns:
    """Decides between the two, before each decode step.

    Attributes:
        taken: whether prefill and decode run in turns.
        changes: how often that has changed.
    """

    def __init__(self, fixed: bool | None = None) -> None:
        """``fixed``: always in turns, or never; None: what is predicted to be faster."""
        self._fixed = fixed
        self.taken = bool(fixed)
        self.changes = 0
        self._prefill, self._decode = _Alone(), _Alone()
        self._since = 0

    def observe_prefill(self, work: float, seconds: float) -> None:
        """Learn that a prefill alone of ``work`` cost-model seconds took ``seconds``."""
        self._prefill.observe(work, seconds)

    def observe_decode(self, work: float, seconds: float) -> None:
        """Learn that a decode step alone of ``work`` cost-model seconds took ``seconds``."""
        self._decode.observe(work, seconds)

    def seconds(self, prefill: float, decode: float) -> float:
        """Return how long this much work takes in turns, seconds."""
        return prefill / self._prefill.speed + decode / self._decode.speed

    def decide(self, at_once: float, prefill: float, decode: float, *, measured: bool) -> bool:
        """Return whether prefill and decode are to run in turns.

        Args:
            at_once: seconds that the work takes at once, at the best division known.
            prefill, decode: the work left for each, cost-model seconds.
            measured: whether the division in use has been measured for a while.
        """
        if self._fixed is not None or not prefill + decode > 0:
            return self.taken
        in_turns = self.seconds(prefill, decode)
        if self.taken:
            tried = min(self._prefill.seen, self._decode.seen) - self._since
            change = tried >= _MEASURED and at_once < (1 - _HYSTERESIS) * in_turns
        else:
            change = measured and in_turns < (1 - _HYSTERESIS) * at_once
        if change:
            self.set(not self.taken)
            logger.info(
                "BlendServe runs prefill and decode %s from now on: that is predicted to take "
                "%.0f %% of the time.",
                "in turns" if self.taken else "at once",
                100 * min(in_turns, at_once) / max(in_turns, at_once),
            )
        return self.taken

    def set(self, taken: bool) -> None:
        """Have them run in turns, or at once; ranks that decided otherwise follow the first one."""
        if taken == self.taken:
            return
        self.taken = taken
        self.changes += 1
        self._since = min(self._prefill.seen, self._decode.seen)
