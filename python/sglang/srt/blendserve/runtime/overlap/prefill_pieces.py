"""Launches a prefill batch a few layers at a time, so that the host is free when a decode ends."""

from __future__ import annotations

from functools import partial

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.overlap.lanes import Lanes, Work
from sglang.srt.blendserve.runtime.overlap.work import LaunchedBatch
from sglang.srt.blendserve.runtime.view import LaneScheduler

_PIECES = 8
"""Parts into which the layers of a prefill batch are divided for launching."""

_AHEAD = 2
"""Parts on the prefill stream at most: one runs, one waits, so that the stream never runs dry and
a new division of the SMs takes effect soon."""


class PrefillPieces:
    """Keeps the prefill lane supplied with layers of one batch.

    Attributes:
        fence: the decode step behind which the next prefill begins; None once one has.
    """

    def __init__(self, scheduler: LaneScheduler, lanes: Lanes) -> None:
        """A model that cannot compute single layers gets its batches whole."""
        self._scheduler, self._lanes = scheduler, lanes
        model = scheduler.tp_worker.model_runner.model
        splits = hasattr(model, "forward_split_prefill")
        self._layers: int = scheduler.model_config.num_hidden_layers if splits else 0
        self.fence: Work | None = None

    def prepare(self, batch: ScheduleBatch) -> int:
        """Have ``batch`` run in pieces; return how many layers are to be launched."""
        if self._layers:
            batch.forward_mode = ForwardMode.SPLIT_PREFILL
        return self._layers or 1

    def supply(self, prefill: LaunchedBatch, group: int) -> None:
        """Launch layers on the stream ``group`` until there are enough on the prefill stream."""
        while prefill.layers_left and len(prefill.works) < _AHEAD:
            batch = prefill.batch
            layers = min(-(-self._layers // _PIECES), prefill.layers_left)
            first = prefill.group < 0
            prefill.one_group = first or (prefill.one_group and prefill.group == group)
            prefill.group = group
            batch.split_forward_count = layers
            with seams.on_prefill_group():
                prefill.result, work = self._lanes.prefill.launch(
                    group, partial(self._scheduler.run_batch, batch), self.fence if first else None
                )
            self.fence = None if first else self.fence
            batch.split_index += layers
            prefill.layers_left -= layers if self._layers else 1
            prefill.works.append(work)
            batch.split_prefill_finished = not prefill.layers_left
