"""Feeds measured step times back to the pace: it then weighs compute against memory as they are."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.step_fit import StepFit
from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.policy.pace import BalancePace, RatioPace
from sglang.srt.blendserve.runtime.ranks import RankGroup

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

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

    def __init__(
        self, policy: AnyStepPolicy, cost: CostModel, *, one_behind: bool, ranks: RankGroup
    ) -> None:
        """``cost``: predicts the steps, and is what the pace of ``policy`` starts from.
        ``one_behind``: whether the device runs one step behind the scheduler, as a GPU does under
        SGLang's overlap schedule: between two launches the scheduler then waits for the step
        before the first of them. ``ranks``: those that take the first one's measurement."""
        self._policy = policy
        self._base = cost
        self._ranks = ranks
        self.fit = StepFit()
        self._launched: list[tuple[float, float, float]] = []  # launch time, compute, memory
        self._behind = int(one_behind)
        self._ratio = 1.0
        self._steps = 0

    @property
    def factors(self) -> tuple[float, float]:
        """(compute, memory): measured over predicted seconds, as the pace uses them now."""
        pace = self._pace
        if pace is None:
            return 1.0, 1.0
        now, base = pace.cost.device, self._base.device
        return base.peak_flops / now.peak_flops, base.bandwidth / now.bandwidth

    def launched(self, batch: ScheduleBatch) -> None:
        """Note that ``batch`` is about to run."""
        if self._pace is None:
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
        """Note that nothing runs: the time until the next launch is no step's."""
        self._launched.clear()

    @property
    def _pace(self) -> BalancePace | RatioPace | None:
        """The pace that there is something to correct of."""
        pace = self._policy.pace
        return pace if isinstance(pace, BalancePace | RatioPace) else None

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
        compute, memory = self._ranks.of_first(*self.fit.factors())
        if abs(compute / memory / self._ratio - 1) < _CHANGE:
            return
        self._ratio = compute / memory
        pace = self._pace
        assert pace is not None
        self._policy.pace = replace(pace, cost=self._base.at_rates(compute, memory))
        logger.info(
            "BlendServe: measured steps take %.2f x the predicted time for compute and %.2f x for "
            "memory; the pace follows.",
            compute,
            memory,
        )
