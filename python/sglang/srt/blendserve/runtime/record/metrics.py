"""Prometheus series of the policy, beside SGLang's own (``--enable-metrics``).

They carry the labels of SGLang's scheduler series and go to the same registry, so they appear
under ``/metrics``. Steps are added up and published once a second.
"""

from __future__ import annotations

import time
from typing import Any

from sglang.srt.blendserve.runtime.record.step_record import StepRecord
from sglang.srt.blendserve.runtime.view import SchedulerView

_SECONDS = 1.0

_COUNTERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "prefill_tokens": (
        "Prompt tokens computed, by the side of the scan they came from.",
        "side",
        {"compute": "prefill_compute", "memory": "prefill_memory", "online": "prefill_online"},
    ),
    "decode_tokens": (
        "Output tokens, by the side of the scan their request came from.",
        "side",
        {"compute": "decode_compute", "memory": "decode_memory", "online": "decode_online"},
    ),
    "step_seconds": (
        "Time of the steps: measured, and predicted by the cost model (compute, memory, sum).",
        "kind",
        {
            "measured": "measured_seconds",
            "predicted": "predicted_seconds",
            "predicted_compute": "predicted_compute_seconds",
            "predicted_memory": "predicted_memory_seconds",
        },
    ),
    "prompt_tokens": (
        "Prompt tokens that entered batches, and those found in the prefix cache.",
        "kind",
        {"all": "prompt_tokens", "hit": "hit_tokens"},
    ),
    "evicted_tokens": (
        "Tokens evicted from the prefix cache, and those that a waiting request would have used.",
        "kind",
        {"all": "evicted_tokens", "needed": "evicted_needed_tokens"},
    ),
    "retracted_requests": ("Offline requests retracted.", "kind", {"offline": "retractions"}),
}
"""Name: what it is, its own label, and for each value of that label the field that is added up."""

_GAUGES: dict[str, tuple[str, str, dict[str, str]]] = {
    "pool_requests": (
        "Offline requests in the pool.",
        "state",
        {"waiting": "waiting", "running": "running", "parked": "parked"},
    ),
    "kv_tokens": (
        "KV tokens: read by requests in flight, by side; cached without a reader; free.",
        "side",
        {
            "compute": "kv_compute",
            "memory": "kv_memory",
            "online": "kv_online",
            "evictable": "kv_evictable",
            "free": "kv_free",
        },
    ),
    "budget_tokens": (
        "Prompt tokens that the pace allows the step.",
        "side",
        {"compute": "budget_compute", "memory": "budget_memory"},
    ),
    "rest_density": (
        "Compute density of the planned requests that still wait.",
        "kind",
        {"waiting": "rest_density"},
    ),
    "plans": ("Plans made since the start.", "kind", {"all": "plans"}),
    "planner_failures": (
        "Times since the start that the planner failed, and requests went by arrival.",
        "kind",
        {"all": "planner_failures"},
    ),
}

_ONLINE: dict[str, tuple[str, str, dict[str, str]]] = {
    "online_ttft_seconds": (
        "Time to first token of the latest online requests in the scheduler, and its target.",
        "kind",
        {"p50": "ttft_p50", "p95": "ttft_p95", "target": "ttft_target"},
    ),
    "online_tpot_seconds": (
        "Time per output token of the latest online requests, and its target.",
        "kind",
        {"p50": "tpot_p50", "p95": "tpot_p95", "target": "tpot_target"},
    ),
}
"""Gauges from `BesideOnline.figures`; those that have no value yet are 0."""

_CACHE: dict[str, tuple[str, str, dict[str, str]]] = {
    "cached_tokens": (
        "Cached tokens, by when a waiting request needs them: one of the plan's next 100, of its "
        "next 1,000, a later one, none; or not looked at since the plan was made.",
        "needed",
        {
            "soon": "soon",
            "next": "next",
            "later": "later",
            "never": "unneeded",
            "unknown": "unknown",
        },
    ),
    "cached_needed_tokens": (
        "Cached tokens that waiting requests need, by what bounds these requests.",
        "bound",
        {"compute": "compute_bound", "memory": "memory_bound"},
    ),
    "cached_hits_tokens": (
        "Prompt tokens of waiting requests that are cached now.",
        "kind",
        {"waiting": "hits"},
    ),
}
"""Gauges of what the prefix cache holds, from the fields of `CacheUse`."""


class BlendMetrics:
    """Publishes step records through SGLang's scheduler metrics."""

    def __init__(self, collector: Any, view: SchedulerView) -> None:
        """``collector``: SGLang's `SchedulerMetricsCollector`, whose labels and metric classes
        are used (they may write to another backend than prometheus_client). ``view``: of the
        scheduler, asked for what its cache holds once a second."""
        # Import after SGLang has set PROMETHEUS_MULTIPROC_DIR.
        from prometheus_client import Counter, Gauge

        counter, gauge = collector._counter_cls or Counter, collector._gauge_cls or Gauge
        labels: dict[str, Any] = collector.labels
        self._steps = counter(
            "sglang:blendserve_steps", "Steps of the engine.", labelnames=[*labels]
        ).labels(**labels)
        self._counters: list[tuple[str, Any]] = []
        for name, (text, label, values) in _COUNTERS.items():
            series = counter(f"sglang:blendserve_{name}", text, labelnames=[*labels, label])
            for value, field in values.items():
                self._counters.append((field, series.labels(**labels, **{label: value})))
        self._gauges = _gauges(gauge, labels, _GAUGES)
        self._cache_use = view.cache_use
        self._cached = _gauges(gauge, labels, _CACHE)
        self._online_figures = view.online_figures
        self._online = _gauges(gauge, labels, _ONLINE)
        self._sums = [0.0] * len(self._counters)
        self._count = 0
        self._last: StepRecord | None = None
        self._published = time.monotonic()

    def add(self, record: StepRecord) -> None:
        """Add the figures of one step to those not yet published."""
        self._count += 1
        self._last = record
        for at, (field, _) in enumerate(self._counters):
            self._sums[at] += getattr(record, field)
        if time.monotonic() - self._published > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Publish what has been added up."""
        self._published = time.monotonic()
        if self._last is None:
            return
        self._steps.inc(self._count)
        for total, (_, series) in zip(self._sums, self._counters, strict=True):
            series.inc(total)
        for field, series in self._gauges:
            series.set(getattr(self._last, field))
        cached = self._cache_use()
        for field, series in self._cached if cached is not None else ():
            series.set(getattr(cached, field))
        online = self._online_figures()
        for field, series in self._online:
            series.set(online.get(field) or 0.0)
        self._sums = [0.0] * len(self._counters)
        self._count = 0


def _gauges(
    gauge: Any, labels: dict[str, Any], table: dict[str, tuple[str, str, dict[str, str]]]
) -> list[tuple[str, Any]]:
    """Make the gauges of ``table``; each series with the field that it shows."""
    made = []
    for name, (text, label, values) in table.items():
        series = gauge(
            f"sglang:blendserve_{name}",
            text,
            labelnames=[*labels, label],
            multiprocess_mode="mostrecent",
        )
        for value, field in values.items():
            made.append((field, series.labels(**labels, **{label: value})))
    return made
