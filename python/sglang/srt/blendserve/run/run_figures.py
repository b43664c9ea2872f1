"""What a run finds out on its way, and the summary made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sglang.srt.blendserve.answering.totals import MAX_KEPT_TOKENS, JobTotals
from sglang.srt.blendserve.run.first_forward import FirstForward
from sglang.srt.blendserve.run.plan_figures import PlanFigures, plan_figures
from sglang.srt.blendserve.run.run_log import RunLog
from sglang.srt.blendserve.run.summary import Summary

if TYPE_CHECKING:
    from sglang.srt.blendserve.cost.cost_model import CostModel


@dataclass(slots=True)
class RunFigures:
    """Figures of one run besides those of its lines.

    Attributes:
        startup_seconds: start of all its engines.
        cost: what work costs on the engine, None where that is not known.
        note: why some figures are not.
        first_forward: when the first engine's first forward pass began.
        prepare_seconds: as in `Summary`.
        stopped_early: by Ctrl-C, a signal or a time limit.
        answered_by: as in `Summary`.
    """

    startup_seconds: float = 0.0
    cost: CostModel | None = None
    note: str | None = None
    first_forward: FirstForward = field(default_factory=FirstForward)
    prepare_seconds: float | None = None
    stopped_early: bool = False
    answered_by: list[int] = field(default_factory=list)

    def summary(
        self, policy: str, requests: int, log: RunLog, totals: JobTotals, *, resumed: int
    ) -> Summary:
        """Return the summary of the run.

        Args:
            policy: SGLang's schedule policy.
            requests: lines of the input that are not blank.
            log: the run's.
            totals: of the lines that it has answered.
            resumed: results that an earlier run had left.
        """
        tally = totals.tally
        tokens = tally.input_tokens + tally.output_tokens
        figures = self._plan_figures(totals)
        return Summary(
            policy=policy,
            finished=log.done == requests,
            requests=requests,
            completed=log.completed,
            failed=log.failed,
            resumed=resumed,
            input_tokens=tally.input_tokens,
            output_tokens=tally.output_tokens,
            cached_tokens=tally.cached_tokens,
            seconds=totals.seconds,
            startup_seconds=self.startup_seconds,
            prepare_seconds=self.prepare_seconds,
            first_forward_seconds=self.first_forward.seconds,
            tokens_per_second=tokens / totals.seconds if totals.seconds else 0.0,
            prefix_sharing=tally.cached_tokens / max(tally.input_tokens, 1),
            prefix_sharing_optimum=figures.sharing_optimum,
            retractions=totals.retractions,
            planned_density=figures.planned_density,
            measured_density=figures.measured_density,
            note=self.note,
            answered_by=self.answered_by,
        )

    def _plan_figures(self, totals: JobTotals) -> PlanFigures:
        prompts = totals.prompts
        if self.stopped_early:  # whoever did it waits for the end
            prompts, self.note = [], "no optimum: the run was stopped"
        elif prompts is None:
            self.note = f"no optimum: more than {MAX_KEPT_TOKENS} prompt tokens"
        return plan_figures(prompts or [], self.cost)
