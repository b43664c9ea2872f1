"""The division of the SMs in use, and what each division has been seen to do."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.runtime.overlap.lanes import Lanes
from sglang.srt.blendserve.runtime.overlap.sm_split import SplitController
from sglang.srt.blendserve.runtime.overlap.work import LaunchedBatch, Load, work_left


class Division:
    """Chooses the stream group that the two lanes launch on while both are busy."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._controller = SplitController(lanes.shares)

    @property
    def group(self) -> int:
        """The stream group of the division in use."""
        return self._lanes.first + self._controller.index

    def choose(self, rest: RemainingWork, step: Load, beside: Load | None, cost: CostModel) -> int:
        """Return the group for a decode step and the prefill beside it; see `work.work_left`."""
        left = work_left(rest, step, beside, cost)
        return self._lanes.first + self._controller.choose(*left)

    def decoded(self, ended: LaunchedBatch) -> None:
        """Learn from a decode step beside which the prefill lane was busy all along."""
        if self._is_division(ended.group):
            work = ended.load.compute + ended.load.memory
            self._controller.observe_decode(ended.group - self._lanes.first, work, ended.seconds)

    def prefilled(self, ended: LaunchedBatch) -> None:
        """Learn from a prefill batch, if it ran at one division from beginning to end."""
        if ended.one_group and self._is_division(ended.group):
            self._controller.observe_prefill(
                ended.group - self._lanes.first, ended.load.compute, ended.seconds
            )

    def state(self) -> dict[str, Any]:
        """Return the division in use and the learned speeds, for ``get_server_info``."""
        prefill, decode = self._controller.speeds()
        return {
            "divisions": [list(sms) for sms in self._lanes.counts],
            "division": self.group,
            "division_changes": self._controller.switches,
            "prefill_speeds": prefill.tolist(),
            "decode_speeds": decode.tolist(),
        }

    def _is_division(self, group: int) -> bool:
        return 0 <= group - self._lanes.first < self._lanes.choices
