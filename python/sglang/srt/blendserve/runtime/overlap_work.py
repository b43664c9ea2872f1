"""What is on a lane, and how much work that is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sglang.srt.blendserve.planner.cost_model import CostModel
from sglang.srt.blendserve.planner.pacing import RemainingWork
from sglang.srt.blendserve.runtime.lanes import Work

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


class Load(NamedTuple):
    """Work of a batch by the cost model, seconds."""

    tokens: int
    kv_tokens: int
    compute: float
    memory: float


@dataclass(slots=True)
class InFlight:
    """A batch on a lane."""

    batch: ScheduleBatch
    load: Load
    group: int
    """Stream group of its last launch."""
    beside: bool
    """Whether the other lane was busy all along."""
    launched: float
    works: deque[Work] = field(default_factory=deque)
    """Launched and not yet over, oldest first."""
    result: Any = None
    seconds: float = 0.0
    one_group: bool = True
    layers_left: int = 0


def decode_load(batch: ScheduleBatch, cost: CostModel) -> Load:
    """One decode step of ``batch``."""
    running = len(batch.reqs)
    kv_tokens = int(batch.seq_lens_cpu.sum())
    return Load(
        running,
        kv_tokens,
        float(cost.decode_compute_seconds(running, kv_tokens)),
        float(cost.kv_read_seconds(kv_tokens) + cost.weights_seconds(running)),
    )


def prefill_load(batch: ScheduleBatch, cost: CostModel) -> Load:
    """The prompt tokens of ``batch``, behind what of their prompts is cached."""
    extend, prefix = (
        np.asarray(lengths, dtype=np.float64) for lengths in (batch.extend_lens, batch.prefix_lens)
    )
    return Load(int(extend.sum()), 0, float(cost.prefill_seconds(extend, prefix).sum()), 0.0)


def work_left(
    rest: RemainingWork, step: Load, beside: Load | None, cost: CostModel
) -> tuple[float, float]:
    """Work left for the prefill and the decode lane, whose ratio divides the SMs; seconds.

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
