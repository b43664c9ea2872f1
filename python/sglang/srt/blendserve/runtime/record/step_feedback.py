"""Feeds measured step times back to the pace: it then weighs compute against memory as they are."""

from __future__ import annotations

import logging
from dataclasses import replace

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.step_fit import StepFit
from sglang.srt.blendserve.cost.step_times import StepLoad
from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.policy.pace import BalancePace, RatioPace
from sglang.srt.blendserve.runtime.ranks import RankGroup

logger = logging.getLogger(__name__)

_STEPS = 64
"""Steps between two corrections."""

_CHANGE = 0.05
"""Relative change of compute against memory that is worth a correction."""


class StepFeedback:
    """Corrects the pace of the step policy by what steps took.

    Only paces that weigh compute against memory have something to correct; with another one this
    does nothing. The plan's order is not touched: a common factor on one kind of work changes every
    density alike, so it would sort the same.
    """

    def __init__(self, policy: AnyStepPolicy, cost: CostModel, *, ranks: RankGroup) -> None:
        """``cost``: predicts the steps, and is what the pace of ``policy`` starts from.
        ``ranks``: those that take the first one's measurement."""
        self._policy = policy
        self._base = cost
        self._ranks = ranks
        self.fit = StepFit()
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

    def add(self, load: StepLoad, seconds: float) -> None:
        """Take in a step and how long it took (seconds)."""
        if self._pace is None:
            return
        cost = self._base
        decode = float(cost.decode_compute_seconds(load.decodes, load.kv_tokens))
        memory = cost.kv_read_seconds(load.kv_tokens)
        memory = memory + cost.weights_seconds(load.prompt_tokens + load.decodes)
        self.fit.add(load.prefill + decode, float(memory), seconds)
        self._steps += 1
        if self._steps % _STEPS == 0:
            self._correct()

    @property
    def _pace(self) -> BalancePace | RatioPace | None:
        """The pace that there is something to correct of."""
        pace = self._policy.pace
        return pace if isinstance(pace, BalancePace | RatioPace) else None

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
