"""When open batches will end, and what they will have used of the GPUs.

First by what a byte of input has cost in the batches before. Once some lines have been answered,
whose lengths say something of the others', by what a second of predicted work has cost: the work of
those lines over the part that they are of the plan, or, where the engine takes the batch in at once
and there is none, the prompts so far and the caps of outputs. The more of a batch is done, the more
by what it has cost itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from sglang.srt.blendserve.answering.rate_meter import RateMeter
from sglang.srt.blendserve.server.gpu_time import GpuTime, predicted
from sglang.srt.blendserve.server.open_batch import OpenBatch
from sglang.srt.blendserve.server.served_engine import ServedEngine
from sglang.srt.blendserve.store.batch_table import BatchRecord, EndedBatch
from sglang.srt.blendserve.store.directory import now
from sglang.srt.blendserve.store.objects import Forecast
from sglang.srt.blendserve.store.tally import Tally

WorkOf = Callable[[Tally], float | None]
"""Returns the predicted work of what was answered, seconds; None: not known."""

_LENGTHS_KNOWN = 16
"""Lines of a batch that were answered by which the others' work is gone by. Unproven."""

_CAPS_ALIKE = 2.0
"""Factor up to which lines have caps alike: of others' it is not known which part is used."""

_FAR = 10 * 365 * 86_400
"""Seconds beyond which no end is forecast."""


class Price(NamedTuple):
    """What batches have cost; None: not known.

    Attributes:
        of_byte: GPU-seconds of a byte of input.
        of_work: GPU-seconds of a second of predicted work.
        lengths: of each batch whose lines all had caps, output tokens that a line might have in
            the mean, and which part of them it had.
    """

    of_byte: float | None = None
    of_work: float | None = None
    lengths: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, ended: Sequence[EndedBatch], work: WorkOf) -> Price:
        """Return what these batches have cost in the mean."""
        used, size = sum(one.gpu_seconds for one in ended), sum(one.input_bytes for one in ended)
        done = [work(one.tally) for one in ended]
        in_all = sum(one for one in done if one is not None)
        lengths = (
            (one.output_caps / one.tally.completed, one.tally.output_tokens / one.output_caps)
            for one in ended
            if one.output_caps and one.tally.completed
        )
        return cls(
            used / size if size else None,
            used / in_all if in_all > 0 and None not in done else None,
            tuple(lengths),
        )

    def used_of(self, cap: float) -> float | None:
        """Return which part of their caps lines use that may have ``cap`` output tokens in the
        mean; None: there were none like them."""
        alike = [
            part
            for other, part in self.lengths
            if cap <= _CAPS_ALIKE * other <= _CAPS_ALIKE**2 * cap
        ]
        return fmean(alike) if alike else None


Prices = Mapping[str, Price]
"""By endpoint."""


def prices_of(ended: Iterable[EndedBatch], work: WorkOf) -> Prices:
    """Return what batches of each endpoint have cost in the mean."""
    by_endpoint: dict[str, list[EndedBatch]] = {}
    for one in ended:
        by_endpoint.setdefault(one.endpoint, []).append(one)
    return {endpoint: Price.of(found, work) for endpoint, found in by_endpoint.items()}


class Outlook:
    """What is expected of the open batches at one moment."""

    def __init__(
        self,
        runs: Mapping[str, OpenBatch],
        engine: ServedEngine,
        gpu_time: GpuTime,
        meter: RateMeter,
        prices: Prices,
    ) -> None:
        """
        Args:
            runs: the open batches by id.
            gpu_time: what they have used.
            meter: how fast lines are answered.
            prices: what batches have cost.
        """
        self._runs, self._engine, self._gpu_time, self._meter = runs, engine, gpu_time, meter
        self._prices = prices
        self._going = [run for run in runs.values() if not run.waits]

    def of(self, record: BatchRecord) -> Forecast | None:
        """Return what is expected of an open batch; None: nobody knows, or it waits."""
        run = self._runs.get(record.id)
        if run is None or run.waits:
            return None
        seconds = self._seconds_to_end(run)
        if seconds is None or seconds > _FAR:
            return None
        before = [other for other in self._going if other.priority > run.priority]
        starts_at = now() + round(min(self._seconds_for(before) or 0.0, seconds))
        if run.begun and record.in_progress_at is not None:
            starts_at = record.in_progress_at
        ends_at = now() + round(seconds)
        in_all = self._in_all(run)
        return Forecast(
            starts_at=min(starts_at, ends_at),
            ends_at=ends_at,
            in_time=ends_at <= record.expires_at,
            gpu_seconds=None if in_all is None else round(max(in_all, self._used(run)), 3),
        )

    def _seconds_to_end(self, run: OpenBatch) -> float | None:
        """Return how long a batch will still take beside others; None: nobody knows."""
        of_late, left = run.seconds_left, self._left
        mine = left.get(run.id)
        if mine is None or None in left.values():
            return self._seconds_for(self._going) if of_late is None else of_late
        # Batches of one priority get on together, so those with more left matter for a part.
        others = (
            seconds if other.priority > run.priority else min(seconds, mine)
            for other in self._going
            if other.priority >= run.priority and (seconds := left[other.id]) is not None
        )
        by_cost = sum(others) / self._engine.gpus
        trusted = run.done.trusted
        return by_cost if of_late is None else (1 - trusted) * by_cost + trusted * of_late

    @cached_property
    def _left(self) -> dict[str, float | None]:
        """GPU-seconds that each batch still needs, by its id."""
        found: dict[str, float | None] = {}
        for run in self._going:
            in_all = self._in_all(run)
            found[run.id] = None if in_all is None else max(in_all - self._used(run), 0.0)
        return found

    def _used(self, run: OpenBatch) -> float:
        return run.gpu_seconds + self._gpu_time.due(run.id)

    def _in_all(self, run: OpenBatch) -> float | None:
        """Return the GPU-seconds that a batch will have used at its end."""
        before = run.before.gpu_seconds
        found = predicted(self._used(run) - before, run.done, self._expected(run))
        return None if found is None else before + found

    def _expected(self, run: OpenBatch) -> float | None:
        """Return what a batch costs by what others have cost, without what it had used when its
        plan was made, GPU-seconds."""
        price = self._prices.get(run.endpoint, Price())
        work = None if price.of_work is None else self._work(run, price)
        if price.of_work is not None and work is not None:
            return work * price.of_work
        if price.of_byte is None or not run.input_bytes:  # of old batches the size is not known
            return None
        return max(run.input_bytes * price.of_byte - run.before.gpu_seconds, 0.0)

    def _work(self, run: OpenBatch, price: Price) -> float | None:
        """Return the predicted work of all of a batch, or of its plan, seconds; None: too little of
        it is answered, or nothing says how long its outputs will be."""
        tally = run.tally.minus(run.before.tally)
        answered = tally.completed
        if answered < _LENGTHS_KNOWN:
            return None
        if run.ended is not None:
            work = self._engine.work(tally)
            return None if work is None or not run.ended else work / run.ended
        lines = run.lines - tally.failed
        if not run.output_caps or lines < answered:
            return None
        used = price.used_of(run.output_caps / lines)
        if used is None:
            return None
        prompts, cached = (
            round(tokens / answered * lines) for tokens in (tally.input_tokens, tally.cached_tokens)
        )
        outputs = max(round(used * run.output_caps), tally.output_tokens)
        return self._engine.work(Tally(lines, 0, prompts, cached, outputs))

    def _seconds_for(self, runs: Iterable[OpenBatch]) -> float | None:
        """Return how long batches take: by the rate of late, and where that or their lines are not
        known by what they are expected to cost; None: nobody knows."""
        seconds, rate = 0.0, self._meter.request_rate()
        for run in runs:
            if run.lines and not run.lines_left:
                continue
            if rate and run.lines_left:
                seconds += run.lines_left / rate
            elif (expected := self._expected(run)) is not None:
                seconds += max(expected - run.gpu_seconds, 0.0) / self._engine.gpus
            else:
                return None
        return seconds
