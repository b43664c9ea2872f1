"""The division of the SMs in use, and what each division has been seen to do."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.runtime.overlap.lanes import Lanes
from sglang.srt.blendserve.runtime.overlap.sm_split import SplitController
from sglang.srt.blendserve.runtime.overlap.turns import Turns
from sglang.srt.blendserve.runtime.overlap.work import LaunchedBatch, Load, work_left


class Division:
    """Chooses the stream group that the two lanes launch on while both are busy, and whether both
    are to be busy at once.

    Attributes:
        turns: whether they are.
    """

    def __init__(self, lanes: Lanes, turns: Turns) -> None:
        self._lanes, self.turns = lanes, turns
        self._controller = SplitController(lanes.shares)

    @property
    def group(self) -> int:
        """The stream group of the division in use."""
        return self._lanes.first + self._controller.index

    def choose(self, rest: RemainingWork, step: Load, beside: Load | None, cost: CostModel) -> int:
        """Return the group for a decode step and the prefill beside it; see `work.work_left`."""
        left = work_left(rest, step, beside, cost)
        index = self._controller.choose(*left)
        at_once = float(self._controller.seconds(*left)[index])
        self.turns.decide(at_once, *left, measured=self._controller.measured)
        return self._lanes.first + index

    def decoded(self, ended: LaunchedBatch) -> None:
        """Learn from a decode step beside which the prefill lane was busy all along."""
        if self._is_division(ended.group):
            work = ended.load.compute + ended.load.memory
            self._controller.observe_decode(ended.group - self._lanes.first, work, ended.seconds)

    def decoded_alone(self, ended: LaunchedBatch) -> None:
        """Learn from a decode step that had the device to itself."""
        self.turns.observe_decode(ended.load.compute + ended.load.memory, ended.seconds)

    def prefilled(self, ended: LaunchedBatch) -> None:
        """Learn from a prefill batch, if it ran on one group from beginning to end."""
        if ended.one_group and ended.group == 0:  # the whole device, and nothing beside it
            self.turns.observe_prefill(ended.load.compute, ended.seconds)
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
            "in_turns": self.turns.taken,
            "turn_changes": self.turns.changes,
            "prefill_speeds": prefill.tolist(),
            "decode_speeds": decode.tolist(),
        }

    def _is_division(self, group: int) -> bool:
        return 0 <= group - self._lanes.first < self._lanes.choices
