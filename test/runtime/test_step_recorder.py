"""One record of each step, read off a scheduler that is not there.

pytest test/runtime/test_step_recorder.py
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from plain_view import PlainView, kv_cache, offline, plain_request
from pools import COST

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.runtime.cache.cached_prefixes import CacheUse
from sglang.srt.blendserve.runtime.record import step_record
from sglang.srt.blendserve.runtime.record.metrics import BlendMetrics
from sglang.srt.blendserve.runtime.record.step_record import StepRecord, StepRecorder
from sglang.srt.blendserve.runtime.view import Evictions

DECODING = [
    offline(100, 5, Side.COMPUTE),
    offline(30, 40, Side.MEMORY),
    offline(20, 10, Side.MEMORY),
    plain_request("chat", [0] * 7, output_ids=[0] * 3),
]


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.flushes = 0

    def add(self, record: StepRecord) -> None:
        self.records.append(record)

    def flush(self) -> None:
        self.flushes += 1


def batch(new: list[Any], extend: list[int], decoding: list[Any]) -> Any:
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: bool(new)),
        reqs=[*new, *decoding],
        decoding_reqs=decoding,
        extend_lens=[*extend, *([1] * len(decoding))],
        prefill_stats=SimpleNamespace(log_hit_tokens=11, log_input_tokens=sum(extend)),
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The recorder's clock, which stands until it is set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(step_record.time, "perf_counter", lambda: clock.now)
    return clock


def record_of(view: PlainView, *batches: Any) -> list[StepRecord]:
    kept = Kept()
    recorder = StepRecorder(view, [kept])
    for one in batches:
        recorder.launched(one)
    recorder.idle()
    return kept.records


def test_tokens_go_to_the_side_that_their_request_came_from() -> None:
    new = [offline(90, 0, Side.COMPUTE), offline(8, 0, Side.MEMORY), plain_request("chat", [0] * 9)]
    [record] = record_of(PlainView(forward_ct=6), batch(new, [80, 8, 9], DECODING))
    assert record.step == 7
    assert (record.prefill_compute, record.prefill_memory, record.prefill_online) == (80, 8, 9)
    assert (record.decode_compute, record.decode_memory, record.decode_online) == (1, 2, 1)
    assert (record.kv_compute, record.kv_memory, record.kv_online) == (105, 100, 10)
    assert (record.hit_tokens, record.prompt_tokens) == (11, 11 + 97)


def test_the_prediction_is_the_cost_models() -> None:
    [record] = record_of(PlainView(), batch([offline(90, 0, Side.COMPUTE)], [90], DECODING))
    compute = COST.prefill_seconds(90) + COST.decode_compute_seconds(4, 215)
    memory = COST.kv_read_seconds(215) + COST.weights_seconds(94)
    assert record.predicted_compute_seconds == pytest.approx(float(compute))
    assert record.predicted_memory_seconds == pytest.approx(float(memory))
    assert record.predicted_seconds == pytest.approx(float(compute + memory))


def test_the_state_of_memory_and_pace_is_that_before_the_step() -> None:
    view = PlainView(kv_cache=kv_cache(321, 45))
    [record] = record_of(view, batch([], [], DECODING))
    assert (record.kv_free, record.kv_evictable) == (321, 45)
    assert (record.budget_compute, record.budget_memory) == (64, 128)
    assert (record.waiting, record.running, record.plans) == (0, 0, 0)


def test_evictions_and_retractions_count_since_the_step_before() -> None:
    view, kept = PlainView(), Kept()
    recorder = StepRecorder(view, [kept])
    recorder.launched(batch([], [], DECODING))
    for evictions, retractions in ((Evictions(100, 30), 2), (Evictions(150, 30), 2)):
        view.evictions, view.retractions = evictions, retractions
        recorder.launched(batch([], [], DECODING))
    recorder.idle()
    assert [r.evicted_tokens for r in kept.records] == [0, 100, 50]
    assert [r.evicted_needed_tokens for r in kept.records] == [0, 30, 0]
    assert [r.retractions for r in kept.records] == [0, 2, 0]


def test_a_step_lasts_until_the_next_launch_or_until_nothing_runs(clock: SimpleNamespace) -> None:
    kept = Kept()
    recorder = StepRecorder(PlainView(), [kept])
    for clock.now in (1.0, 1.5):
        recorder.launched(batch([], [], DECODING))
    clock.now = 3.5
    recorder.idle()
    clock.now = 99.0
    recorder.idle()
    recorder.launched(batch([], [], DECODING))
    assert [r.measured_seconds for r in kept.records] == [0.5, 2.0]
    assert kept.flushes == 1


def test_metrics_add_up_the_steps_and_show_the_last() -> None:
    from prometheus_client import CollectorRegistry, Counter, Gauge

    registry = CollectorRegistry()
    collector = SimpleNamespace(
        labels={"model_name": "m"},
        _counter_cls=lambda *args, **kwargs: Counter(*args, registry=registry, **kwargs),
        _gauge_cls=lambda *args, **kwargs: Gauge(*args, registry=registry, **kwargs),
    )
    online = {"ttft_p50": 0.25, "ttft_target": None}
    view = PlainView(cached=CacheUse(soon=5, unneeded=7, hits=9), online=online)
    metrics = BlendMetrics(collector, view)
    for waiting in (9, 4):
        metrics.add(StepRecord(prefill_memory=50, retractions=1, waiting=waiting))
    metrics.flush()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"sglang:blendserve_{name}", {"model_name": "m"} | labels)

    assert value("steps_total") == 2
    assert value("prefill_tokens_total", side="memory") == 100
    assert value("retracted_requests_total", kind="offline") == 2
    assert value("pool_requests", state="waiting") == 4
    assert value("online_ttft_seconds", kind="p50") == 0.25
    assert value("online_ttft_seconds", kind="target") == value("online_tpot_seconds", kind="p95")
    assert value("cached_tokens", needed="soon") == 5
    assert value("cached_tokens", needed="never") == 7
    assert value("cached_hits_tokens", kind="waiting") == 9
