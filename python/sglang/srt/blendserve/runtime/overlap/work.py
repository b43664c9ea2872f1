"""What is on a lane, and how much work that is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.runtime.overlap.lanes import Work

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


class Load(NamedTuple):
    """How much work a batch is."""

    tokens: int
    """Prompt tokens of a prefill, output tokens of a decode step."""
    kv_tokens: int
    """KV tokens that a decode step reads."""
    compute: float
    """Seconds of compute by the cost model."""
    memory: float
    """Seconds of memory traffic by the cost model."""


@dataclass(slots=True)
class LaunchedBatch:
    """A batch that has been launched on a lane and is not over yet."""

    batch: ScheduleBatch
    """The batch as it was launched: that of a decode goes on changing when the next is prepared."""
    load: Load
    group: int
    """Stream group of the last launch."""
    beside: bool
    """Whether the other lane was busy all along."""
    launched: float
    """When the batch was launched, in seconds since the scheduler's start."""
    works: deque[Work] = field(default_factory=deque)
    """Work that is launched and not yet over, oldest first."""
    result: Any = None
    """SGLang's result of the last launch."""
    seconds: float = 0.0
    """Device time of the work that is over, seconds."""
    one_group: bool = True
    """Whether all launches were on streams of the same group."""
    layers_left: int = 0
    """Layers of a prefill that are still to be launched; 1 for all where they cannot be told
    apart."""


def decode_load(batch: ScheduleBatch, cost: CostModel) -> Load:
    """Return the work of one decode step of ``batch``."""
    running = len(batch.reqs)
    kv_tokens = int(batch.seq_lens_cpu.sum())
    return Load(
        running,
        kv_tokens,
        float(cost.decode_compute_seconds(running, kv_tokens)),
        float(cost.kv_read_seconds(kv_tokens) + cost.weights_seconds(running)),
    )


def prefill_load(batch: ScheduleBatch, cost: CostModel) -> Load:
    """Return the work of computing the prompt tokens of ``batch`` that are not cached."""
    extend, prefix = (
        np.asarray(lengths, dtype=np.float64) for lengths in (batch.extend_lens, batch.prefix_lens)
    )
    return Load(int(extend.sum()), 0, float(cost.prefill_seconds(extend, prefix).sum()), 0.0)


def work_left(
    rest: RemainingWork, step: Load, beside: Load | None, cost: CostModel
) -> tuple[float, float]:
    """Return the seconds of work left for (prefill, decode), whose ratio divides the SMs.

    ``rest``: of the planned requests that wait. ``step``: the next decode step; those to come are
    taken to be like it. ``beside``: the prefill in flight. Where nothing is planned, the step and
    the prefill beside it are all there is.
    """
    each = step.compute + step.memory
    read = float(cost.kv_read_seconds(step.kv_tokens))
    if read > 0:
        prefill = rest.compute - rest.memory * step.compute / read
        decode = rest.memory * each / read
        if prefill > 0 and decode > 0:
            return prefill, decode
    return (each if beside is None else beside.compute), each


def may_run_ahead(batch: ScheduleBatch) -> bool:
    """Return whether ``batch`` may decode again before the host has its last step's tokens.

    The next tokens are on the device; what else a step needs of the last one is not.
    """
    return not (
        batch.is_empty()
        or batch.has_grammar
        or batch.return_logprob
        or batch.return_hidden_states
        or batch.sampling_info.penalizer_orchestrator.is_required
    )
