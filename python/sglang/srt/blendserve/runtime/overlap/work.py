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

    from sglang.srt.blendserve.runtime.scheduler import BlendScheduler


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
    """As it was launched: a decode's own goes on changing when the next step is prepared."""
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


def may_run_ahead(batch: ScheduleBatch) -> bool:
    """Whether ``batch`` may decode again before the host has seen the tokens of its last step.

    The next tokens are on the device; what else a step needs of the last one is not.
    """
    return not (
        batch.is_empty()
        or batch.has_grammar
        or batch.return_logprob
        or batch.return_hidden_states
        or batch.sampling_info.penalizer_orchestrator.is_required
    )


def on_all_ranks(scheduler: BlendScheduler, *done: bool) -> tuple[bool, ...]:
    """Which of these all tensor parallel ranks have seen end: only then may one act on it."""
    if scheduler.ps.tp_size == 1:
        return done
    import torch

    flags = torch.tensor(done, dtype=torch.int32)
    least = torch.distributed.ReduceOp.MIN
    torch.distributed.all_reduce(flags, op=least, group=scheduler.tp_cpu_group)
    return tuple(bool(flag) for flag in flags.tolist())
