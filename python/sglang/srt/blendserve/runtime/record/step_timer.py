"""What each step held and how long it took, for those who learn from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.step_times import StepLoad

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


class LearnsFromSteps(Protocol):
    """Takes in steps that are over."""

    def add(self, load: StepLoad, seconds: float) -> None:
        """Take in a step and how long it took (seconds)."""


class StepTimer:
    """Measures steps from launch to launch, where one runs at a time."""

    def __init__(
        self,
        cost: CostModel,
        learners: Sequence[LearnsFromSteps],
        *,
        one_behind: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``one_behind``: whether the device runs one step behind the scheduler, as a GPU does
        under SGLang's overlap schedule: between two launches the scheduler then waits for the step
        before the first of them. ``clock``: seconds from any beginning."""
        self.clock = clock
        self._cost = cost
        self._learners = learners
        self._behind = int(one_behind)
        self._launched: list[tuple[float, StepLoad]] = []
        self.last_seconds = 0.0
        """How long the last step took whose end was seen."""

    def launched(self, batch: ScheduleBatch) -> StepLoad:
        """Note that ``batch`` is about to run; return what it holds."""
        now = self.clock()
        steps = self._launched
        if len(steps) > self._behind:
            self.last_seconds = now - steps[-1][0]
            for one in self._learners:
                one.add(steps[-1 - self._behind][1], self.last_seconds)
        load = batch_load(batch, self._cost)
        steps.append((now, load))
        del steps[: -1 - self._behind]
        return load

    def idle(self) -> None:
        """Note that nothing runs: the time until the next launch is no step's."""
        self._launched.clear()
        self.last_seconds = 0.0


def batch_load(batch: ScheduleBatch, cost: CostModel) -> StepLoad:
    """Return what the step of ``batch`` computes, by the cost model ``cost``."""
    reqs: list[Any] = batch.reqs
    prefilled, prefill, tokens = 0, 0.0, 0
    if batch.forward_mode.is_extend():
        prefilled = len(reqs) - len(batch.decoding_reqs or ())
        new: list[int] = list(batch.extend_lens)[:prefilled]
        prefill = float(cost.prefill_seconds(new, list(batch.prefix_lens)[:prefilled]).sum())
        tokens = sum(new)
    decoding = reqs[prefilled:]
    read = sum([len(req.origin_input_ids) + len(req.output_ids) for req in decoding])
    return StepLoad(prefill, len(decoding), read, tokens)
