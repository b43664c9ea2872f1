"""How to share the multiprocessors (SMs) of one GPU between a prefill and a decode lane.

An engine that overlaps runs prefill and decode at once, each on its share of the SMs. With work P
left for prefill and D for decode, both in the cost model's seconds, and speeds v_p(i) and v_d(i) at
division i, the lanes need

    T(i) = max(P / v_p(i), D / v_d(i))

until both are done. The controller takes the division of least T. Speeds are learned from measured
times: cost-model seconds of work per second on the clock, so that whatever the model gets wrong
(kernel efficiency, interference of the two lanes) is in the speed.

Nothing here reads a clock or knows a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DIVISIONS = 6
"""Divisions offered to the controller: each costs a set of captured CUDA graphs."""

_LEAST_DECODE = 16
"""SMs that decode gets at least (SGLang's own choice for its divisions)."""

_KNEE = 0.4
"""Share of the SMs with which decode is assumed to reach the full bandwidth until measured."""

_SMOOTHING = 0.2
"""Weight of a new measurement in the running mean of the logarithm of a speed."""


def divisions(
    total: int, least: int, multiple: int, count: int = DIVISIONS
) -> list[tuple[int, int]]:
    """Return at most ``count`` ways (prefill, decode) to divide ``total`` SMs, prefill ascending.

    Prefill gets a multiple of ``multiple``, at least ``least``; decode the rest, at least 16.
    Raises ValueError where there is no such division.
    """
    first = max(-(-least // multiple) * multiple, multiple)
    values = list(range(first, total - max(least, _LEAST_DECODE) + 1, multiple))
    if not values:
        raise ValueError(f"{total} SMs cannot be divided: prefill needs {first}, decode 16")
    # The smallest shares of prefill are of little use: start at a quarter of the device.
    values = [v for v in values if v >= total // 4] or values
    places = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))
    return [(values[place], total - values[place]) for place in places]


class _Speeds:
    """Speed of one lane at each division.

    What has not been measured is taken to be as good as it can be, given what has: more SMs help in
    proportion at best, fewer do no harm at best. So every division that might be the best one is
    tried, and given up when its measurement says so.
    """

    def __init__(self, shares: Floats, prior: Floats) -> None:
        """``shares``: (n,) this lane's share of the SMs. ``prior``: (n,) before any measurement."""
        self._shares = shares
        self._prior = prior
        self._logs = np.full(prior.size, np.nan)

    def observe(self, index: int, speed: float) -> None:
        log = float(np.log(np.clip(speed, 1e-9, 1e9)))
        known = self._logs[index]
        self._logs[index] = log if np.isnan(known) else known + _SMOOTHING * (log - known)

    def values(self) -> Floats:
        """(n,) monotone in the share: more SMs are never slower."""
        known = np.flatnonzero(~np.isnan(self._logs))
        if not known.size:
            return self._prior
        measured = np.exp(self._logs[known])
        helped = np.maximum(self._shares[:, None] / self._shares[None, known], 1.0)
        speeds = (measured[None, :] * helped).min(axis=1)
        speeds[known] = measured
        order = np.argsort(self._shares)
        speeds[order] = np.maximum.accumulate(speeds[order])
        return np.asarray(speeds)


class SplitController:
    """Chooses among divisions of one GPU; see the module's docstring."""

    def __init__(
        self, prefill_shares: Sequence[float], *, hysteresis: float = 0.05, dwell: int = 4
    ) -> None:
        """``prefill_shares``: prefill's share of the SMs at each division, ascending, in (0, 1).
        ``hysteresis``: leave a division only for one that is better by this share of the time.
        ``dwell``: decode steps measured at a division before it may be left. Raises ValueError.
        """
        shares = np.asarray(prefill_shares, dtype=np.float64)
        if not shares.size or (shares <= 0).any() or (shares >= 1).any():
            raise ValueError(f"prefill shares {list(prefill_shares)}: must lie between 0 and 1")
        if (np.diff(shares) <= 0).any():
            raise ValueError(f"prefill shares {list(prefill_shares)}: must ascend")
        self._prefill = _Speeds(shares, shares)
        self._decode = _Speeds(1 - shares, np.minimum(1.0, (1 - shares) / _KNEE))
        self.hysteresis = hysteresis
        self.dwell = dwell
        self.index = 0
        self.switches = 0
        self._seen: int | None = None

    def observe_prefill(self, index: int, work: float, seconds: float) -> None:
        """Learn that a prefill of ``work`` cost-model seconds took ``seconds`` at division
        ``index``."""
        if work > 0 and seconds > 0:
            self._prefill.observe(index, work / seconds)

    def observe_decode(self, index: int, work: float, seconds: float) -> None:
        """Learn that a decode step of ``work`` cost-model seconds took ``seconds`` at division
        ``index`` while the prefill lane was busy."""
        if work > 0 and seconds > 0:
            self._decode.observe(index, work / seconds)
            if index == self.index and self._seen is not None:
                self._seen += 1

    def seconds(self, prefill: float, decode: float) -> Floats:
        """Return (n,) T(i), the seconds that the lanes need for this much work at each division."""
        return np.maximum(prefill / self._prefill.values(), decode / self._decode.values())

    def choose(self, prefill: float, decode: float) -> int:
        """Return the division for the next step, given the work left on each lane.

        Only the ratio of the two amounts of work (cost-model seconds) matters.
        """
        if not (prefill >= 0 and decode >= 0 and prefill + decode > 0):
            return self.index
        times = self.seconds(prefill, decode)
        best = int(times.argmin())
        if self._seen is None:
            self.index, self._seen = best, 0  # the first choice follows the prior alone
        elif (
            best != self.index
            and self._seen >= self.dwell
            and times[best] < (1 - self.hysteresis) * times[self.index]
        ):
            self.index, self._seen = best, 0
            self.switches += 1
        return self.index

    @property
    def measured(self) -> bool:
        """Whether the division in use has been measured for as long as it must be kept."""
        return self._seen is not None and self._seen >= self.dwell

    def speeds(self) -> tuple[Floats, Floats]:
        """Return the (n,) speeds of prefill and of decode at each division as known now, in
        cost-model seconds of work per second."""
        return self._prefill.values(), self._decode.values()
