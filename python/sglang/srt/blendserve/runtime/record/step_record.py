"""What one scheduling step did: the figures behind the metrics and the step trace."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from sglang.srt.blendserve.cost.cost_model import CostModel, density
from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.runtime.offline_request import offline_request
from sglang.srt.blendserve.runtime.view import Evictions, SchedulerView

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


@dataclass(slots=True)
class StepRecord:
    """One step. Tokens unless the name says otherwise; every field is a column of the trace.

    ``..._compute`` and ``..._memory`` belong to requests of that side of the scan, ``..._online``
    to requests without an offline mark.
    """

    step: int = 0
    """SGLang's number of the forward pass."""
    start_seconds: float = 0.0
    """When the forward was launched, since the scheduler started."""
    measured_seconds: float = 0.0
    """Time from this launch to the next one, or until the engine fell idle."""
    predicted_compute_seconds: float = 0.0
    """Time by the cost model for the step's arithmetic."""
    predicted_memory_seconds: float = 0.0
    """Time by the cost model for reading the KV cache and loading the weights."""
    predicted_seconds: float = 0.0
    """Compute and memory seconds added up: the engine does one after the other."""
    prefill_compute: int = 0
    """Prompt tokens computed of requests from the compute-bound side of the scan."""
    prefill_memory: int = 0
    """Prompt tokens computed of requests from the memory-bound side."""
    prefill_online: int = 0
    """Prompt tokens computed of online requests."""
    decode_compute: int = 0
    """Requests of the compute-bound side that decode one token."""
    decode_memory: int = 0
    """Requests of the memory-bound side that decode one token."""
    decode_online: int = 0
    """Online requests that decode one token."""
    kv_compute: int = 0
    """KV tokens that decodes of the compute-bound side read, shared prefixes counted for each."""
    kv_memory: int = 0
    """KV tokens that decodes of the memory-bound side read, shared prefixes counted for each."""
    kv_online: int = 0
    """KV tokens that decodes of online requests read."""
    kv_evictable: int = 0
    """KV tokens that are cached and used by no request in flight."""
    kv_free: int = 0
    """KV slots (tokens) that hold nothing."""
    budget_compute: int = 0
    """The pace's prompt tokens for this step, if any go to the compute-bound side."""
    budget_memory: int = 0
    """The pace's prompt tokens for this step in all."""
    prompt_tokens: int = 0
    """Prompt tokens of the requests that entered the batch, cached ones included."""
    hit_tokens: int = 0
    """Prompt tokens of the requests that entered the batch that were found in the prefix cache."""
    evicted_tokens: int = 0
    """Tokens evicted from the prefix cache since the last step."""
    evicted_needed_tokens: int = 0
    """Tokens evicted since the last step that a waiting request would have used."""
    retractions: int = 0
    """Offline requests retracted since the last step."""
    waiting: int = 0
    """Requests in the pool."""
    running: int = 0
    """Offline requests in flight."""
    parked: int = 0
    """Offline requests in flight that sit steps out beside online ones."""
    plans: int = 0
    """Plans made since the scheduler started."""
    planner_failures: int = 0
    """Times since the scheduler started that the planner failed; requests then go by arrival."""
    rest_density: float = 0.0
    """Compute density of the planned requests that still wait."""


COLUMNS = tuple(column.name for column in fields(StepRecord))


class StepSink(Protocol):
    """Takes the record of every step."""

    def add(self, record: StepRecord) -> None:
        """Take the ``record`` of a step that is over."""

    def flush(self) -> None:
        """Leave nothing in a buffer: the engine is idle."""


class StepRecorder:
    """Watches the scheduler's steps and hands one record of each to the sinks.

    Reading a step costs about 0.1 ms at 256 requests in flight (docs/runtime.md); without sinks
    there is no recorder.
    """

    def __init__(self, view: SchedulerView, sinks: list[StepSink]) -> None:
        self._view = view
        self._sinks = sinks
        self._began = time.perf_counter()
        self._open: StepRecord | None = None
        self._evictions = Evictions()
        self._retractions = 0

    def launched(self, batch: ScheduleBatch) -> None:
        """Note that ``batch`` is about to run: the step before it is over."""
        now = time.perf_counter() - self._began
        self._close(now)
        record = StepRecord(step=self._view.forward_ct + 1, start_seconds=now)
        self._read_batch(record, batch)
        self._read_view(record)
        self._open = record

    def idle(self) -> None:
        """Note that nothing runs: the last step is over."""
        if self._open is not None:
            self._close(time.perf_counter() - self._began)
            for sink in self._sinks:
                sink.flush()

    def _close(self, now: float) -> None:
        record, self._open = self._open, None
        if record is not None:
            record.measured_seconds = now - record.start_seconds
            for sink in self._sinks:
                sink.add(record)

    def _read_batch(self, record: StepRecord, batch: ScheduleBatch) -> None:
        reqs: list[Any] = batch.reqs
        prefilled = 0
        if batch.forward_mode.is_extend():
            prefilled = len(reqs) - len(batch.decoding_reqs or ())
            for req, tokens in zip(reqs[:prefilled], batch.extend_lens, strict=False):
                offline = offline_request(req)
                if offline is None:
                    record.prefill_online += tokens
                elif offline.side is Side.COMPUTE:
                    record.prefill_compute += tokens
                else:
                    record.prefill_memory += tokens
            if (stats := batch.prefill_stats) is not None:
                record.hit_tokens = stats.log_hit_tokens
                record.prompt_tokens = stats.log_input_tokens + stats.log_hit_tokens
        self._read_decodes(record, reqs[prefilled:])

    def _read_decodes(self, record: StepRecord, reqs: list[Any]) -> None:
        # Hundreds of requests in every step: local sums, and no call for each.
        compute = memory = online = kv_compute = kv_memory = kv_online = 0
        compute_side = Side.COMPUTE
        for req in reqs:
            offline = getattr(req, "blendserve", None)
            if offline is None:
                online += 1
                kv_online += len(req.origin_input_ids) + len(req.output_ids)
            elif offline.side is compute_side:
                compute += 1
                kv_compute += offline.prompt.size + offline.generated
            else:
                memory += 1
                kv_memory += offline.prompt.size + offline.generated
        record.decode_compute, record.decode_memory, record.decode_online = compute, memory, online
        record.kv_compute, record.kv_memory, record.kv_online = kv_compute, kv_memory, kv_online

    def _read_view(self, record: StepRecord) -> None:
        view = self._view
        self._predict(record, view.pool.cost)
        record.kv_evictable, record.kv_free = view.kv_cache.evictable, view.kv_cache.free
        record.budget_compute, record.budget_memory = view.step_policy.budget
        evictions = view.evictions
        record.evicted_tokens = evictions.tokens - self._evictions.tokens
        record.evicted_needed_tokens = evictions.needed - self._evictions.needed
        self._evictions = evictions
        record.retractions = view.retractions - self._retractions
        self._retractions = view.retractions
        pool = view.pool
        record.waiting, record.running = len(pool), len(pool.table.running)
        record.parked = view.parked
        record.plans = pool.current.orders
        record.planner_failures = view.planner_failures
        record.rest_density = float(density(*pool.current.rest))

    def _predict(self, record: StepRecord, cost: CostModel) -> None:
        prefill = record.prefill_compute + record.prefill_memory + record.prefill_online
        decode = record.decode_compute + record.decode_memory + record.decode_online
        read = record.kv_compute + record.kv_memory + record.kv_online
        compute = cost.prefill_seconds(prefill) + cost.decode_compute_seconds(decode, read)
        memory = cost.kv_read_seconds(read) + cost.weights_seconds(prefill + decode)
        record.predicted_compute_seconds = float(compute)
        record.predicted_memory_seconds = float(memory)
        record.predicted_seconds = float(compute + memory)
