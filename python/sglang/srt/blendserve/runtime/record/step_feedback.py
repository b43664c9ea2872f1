"""Feeds measured step times back to the pace: it then weighs compute against memory as they are."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang.srt.blendserve.cost.step_fit import StepFit
from sglang.srt.blendserve.policy.pace import BalancePace, RatioPace

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from sglang.srt.blendserve.runtime.scheduler import BlendScheduler

logger = logging.getLogger(__name__)

_STEPS = 64
"""Steps between two corrections."""

_CHANGE = 0.05
"""Relative change of compute against memory that is worth a correction."""


class StepFeedback:
    """Measures steps from launch to launch and corrects the pace of the step policy.

    Only paces that weigh compute against memory have something to correct; with another one this
    does nothing. The plan's order is not touched: a common factor on one kind of work changes every
    density alike, so it would sort the same.
    """

    def __init__(self, scheduler: BlendScheduler) -> None:
        self._scheduler = scheduler
        self._base = scheduler.pool.cost
        self.fit = StepFit()
        self._launched: list[tuple[float, float, float]] = []  # launch time, compute, memory
        # A GPU runs behind the scheduler by one step when their work overlaps: between two
        # launches the scheduler then waits for the step before the first of them.
        self._behind = int(bool(scheduler.enable_overlap) and scheduler.device != "cpu")
        self._ratio = 1.0
        self._steps = 0

    @property
    def factors(self) -> tuple[float, float]:
        """(compute, memory): measured over predicted seconds, as the pace uses them now."""
        pace = self._scheduler.step_policy.pace
        if not isinstance(pace, BalancePace | RatioPace):
            return 1.0, 1.0
        now, base = pace.cost.device, self._base.device
        return base.peak_flops / now.peak_flops, base.bandwidth / now.bandwidth

    def launched(self, batch: ScheduleBatch) -> None:
        """``batch`` is about to run."""
        if not isinstance(self._scheduler.step_policy.pace, BalancePace | RatioPace):
            return
        now = time.perf_counter()
        steps = self._launched
        if len(steps) > self._behind:
            _, compute, memory = steps[-1 - self._behind]
            self.fit.add(compute, memory, now - steps[-1][0])
        steps.append((now, *self._work(batch)))
        del steps[: -1 - self._behind]
        self._steps += 1
        if self._steps % _STEPS == 0:
            self._correct()

    def idle(self) -> None:
        """Nothing runs: the time until the next launch is nobody's."""
        self._launched.clear()

    def _work(self, batch: ScheduleBatch) -> tuple[float, float]:
        """(compute, memory) seconds of a step by the uncorrected cost model."""
        cost, reqs = self._base, batch.reqs
        prefilled, compute, tokens = 0, 0.0, 0
        if batch.forward_mode.is_extend():
            prefilled = len(reqs) - len(batch.decoding_reqs or ())
            new: list[int] = list(batch.extend_lens)[:prefilled]
            compute = float(cost.prefill_seconds(new, list(batch.prefix_lens)[:prefilled]).sum())
            tokens = sum(new)
        decoding: list[Any] = reqs[prefilled:]
        read = sum([len(req.origin_input_ids) + len(req.output_ids) for req in decoding])
        compute += float(cost.decode_compute_seconds(len(decoding), read))
        memory = cost.kv_read_seconds(read) + cost.weights_seconds(tokens + len(decoding))
        return compute, float(memory)

    def _correct(self) -> None:
        compute, memory = self._of_first_rank(self.fit.factors())
        if abs(compute / memory / self._ratio - 1) < _CHANGE:
            return
        self._ratio = compute / memory
        policy = self._scheduler.step_policy
        assert isinstance(policy.pace, BalancePace | RatioPace)
        policy.pace = replace(policy.pace, cost=self._base.at_rates(compute, memory))
        logger.info(
            "BlendServe: measured steps take %.2f x the predicted time for compute and %.2f x for "
            "memory; the pace follows.",
            compute,
            memory,
        )

    def _of_first_rank(self, factors: tuple[float, float]) -> tuple[float, float]:
        """All ranks of a group take the same decisions, so they take the first one's measurement.

        They launch the same steps, so all of them come here together.
        """
        scheduler = self._scheduler
        if scheduler.ps.attn_tp_size == 1:
            return factors
        import torch

        group = scheduler.attn_tp_cpu_group
        agreed = torch.tensor(np.array(factors), dtype=torch.float64)
        torch.distributed.broadcast(
            agreed, src=torch.distributed.get_global_rank(group, 0), group=group
        )
        compute, memory = agreed.tolist()
        return compute, memory
