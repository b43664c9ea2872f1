"""When open batches will end, and what they will have used of the GPUs.

First by what a byte of input has cost in the batches before. Once some lines have ended, whose
lengths say something of the others', by what a second of predicted work has cost: of the plan, or
where the engine takes the batch in at once and there is none, of the prompts so far and the caps of
outputs. The more of a batch is done, the more by what it has cost itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
"""Lines of a batch that have ended by which the predicted work of its others is gone by: before,
unknown lengths may count with their caps. Unproven."""


class Price(NamedTuple):
    """What batches have cost, GPU-seconds; None: not known.

    Attributes:
        of_byte: of a byte of input.
        of_work: of a second of predicted work.
        of_cap: output tokens for each token that was allowed.
    """

    of_byte: float | None = None
    of_work: float | None = None
    of_cap: float | None = None

    @classmethod
    def of(cls, ended: Sequence[EndedBatch], work: WorkOf) -> Price:
        """Return what these batches have cost in the mean."""
        used, size = sum(one.gpu_seconds for one in ended), sum(one.input_bytes for one in ended)
        done = [work(one.tally) for one in ended]
        in_all = sum(one for one in done if one is not None)
        capped = [one for one in ended if one.output_caps]
        caps, tokens = sum(one.output_caps or 0 for one in capped), _output_tokens(capped)
        return cls(
            used / size if size else None,
            used / in_all if in_all > 0 and None not in done else None,
            tokens / caps if caps else None,
        )


def _output_tokens(batches: Iterable[EndedBatch]) -> int:
    return sum(one.tally.output_tokens for one in batches)


Prices = Mapping[str, Price]
"""By endpoint."""


def prices(ended: Iterable[EndedBatch], work: WorkOf) -> Prices:
    """Return what batches of each endpoint have cost in the mean."""
    by_endpoint: dict[str, list[EndedBatch]] = {}
    for one in ended:
        by_endpoint.setdefault(one.endpoint, []).append(one)
    return {endpoint: Price.of(found, work) for endpoint, found in by_endpoint.items()}


class Forecasts:
    """Forecasts of the batches that are open."""

    def __init__(
        self,
        runs: Mapping[str, OpenBatch],
        engine: ServedEngine,
        gpu_time: GpuTime,
        meter: RateMeter,
    ) -> None:
        """
        Args:
            runs: the open batches by id; it changes as they come and go.
            gpu_time: what they have used.
            meter: how fast lines are answered.
        """
        self._runs, self._engine, self._gpu_time, self._meter = runs, engine, gpu_time, meter

    def of(self, record: BatchRecord, prices: Prices) -> Forecast | None:
        """Return what is expected of an open batch; None: nobody knows, or it waits."""
        run = self._runs.get(record.id)
        if run is None or run.waits:
            return None
        going = [other for other in self._runs.values() if not other.waits]
        seconds = self._seconds_to_end(run, going, prices)
        if seconds is None:
            return None
        before = [other for other in going if other.priority > run.priority]
        starts_at = now() + round(self._seconds_for(before, prices) or 0)
        if run.begun and record.in_progress_at is not None:
            starts_at = record.in_progress_at
        ends_at = now() + round(seconds)
        used = self.gpu_seconds(run)
        in_all = predicted(used, run.done, self._expected(run, prices))
        return Forecast(
            starts_at=min(starts_at, ends_at),
            ends_at=ends_at,
            in_time=ends_at <= record.expires_at,
            gpu_seconds=None if in_all is None else round(max(in_all, used), 3),
        )

    def gpu_seconds(self, run: OpenBatch) -> float:
        """Return what a batch has used of the GPUs so far."""
        return run.gpu_seconds + self._gpu_time.due(run.id)

    def _seconds_to_end(
        self, run: OpenBatch, going: Sequence[OpenBatch], prices: Prices
    ) -> float | None:
        """Return how long a batch will still take beside others; None: nobody knows."""
        of_late = run.seconds_left
        left = {one.id: self._gpu_seconds_left(one, prices) for one in going}
        mine = left.get(run.id)
        if mine is None or None in left.values():
            return self._seconds_for(going, prices) if of_late is None else of_late
        # Batches of one priority get on together, so those with more left matter for a part.
        higher = {one.id for one in going if one.priority > run.priority}
        lower = {one.id for one in going if one.priority < run.priority}
        others = (
            seconds if name in higher else min(seconds, mine)
            for name, seconds in left.items()
            if seconds is not None and name not in lower
        )
        by_cost = sum(others) / self._engine.gpus
        trusted = run.done.trusted
        return by_cost if of_late is None else (1 - trusted) * by_cost + trusted * of_late

    def _gpu_seconds_left(self, run: OpenBatch, prices: Prices) -> float | None:
        used = self.gpu_seconds(run)
        in_all = predicted(used, run.done, self._expected(run, prices))
        return None if in_all is None else max(in_all - used, 0.0)

    def _seconds_for(self, runs: Iterable[OpenBatch], prices: Prices) -> float | None:
        """Return how long batches take: by the rate of late, and where that or their lines are not
        known by what they are expected to cost; None: nobody knows."""
        seconds, rate = 0.0, self._meter.request_rate()
        for run in runs:
            expected = self._expected(run, prices)
            if run.lines and not run.lines_left:
                continue
            if rate and run.lines_left:
                seconds += run.lines_left / rate
            elif expected is not None:
                seconds += max(expected - run.gpu_seconds, 0.0) / self._engine.gpus
            else:
                return None
        return seconds

    def _expected(self, run: OpenBatch, prices: Prices) -> float | None:
        """Return what a batch costs in all by what others have cost, GPU-seconds."""
        price = prices.get(run.endpoint, Price())
        if price.of_work is not None:
            work = self._work(run, price)
            if work is not None:
                return work * price.of_work
        if price.of_byte is None or not run.input_bytes:  # of old batches the size is not known
            return None
        return run.input_bytes * price.of_byte

    def _work(self, run: OpenBatch, price: Price) -> float | None:
        """Return the predicted work of all of a batch, seconds; None: too little has ended of it,
        or nothing says how long its outputs will be."""
        ended = run.tally.completed
        if ended < _LENGTHS_KNOWN:
            return None
        if run.work is not None:
            return run.work
        if price.of_cap is None or not run.output_caps or not run.lines:
            return None
        lines = max(run.lines - run.tally.failed, ended)
        prompts, cached = (
            round(tokens / ended * lines)
            for tokens in (run.tally.input_tokens, run.tally.cached_tokens)
        )
        outputs = max(round(price.of_cap * run.output_caps), run.tally.output_tokens)
        return self._engine.work(Tally(lines, 0, prompts, cached, outputs))
