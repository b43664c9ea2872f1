"""The lane trace: one CSV row for each decode step and each prefill batch that ran on a lane."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.blendserve.runtime.overlap.lanes import Lanes
    from sglang.srt.blendserve.runtime.overlap.work import LaunchedBatch
    from sglang.srt.blendserve.runtime.record.row_file import RowFile
    from sglang.srt.blendserve.runtime.view import LaneScheduler


@dataclass(frozen=True, slots=True)
class LaneRow:
    """What ran on a lane, from when to when; times are seconds since the scheduler's start."""

    lane: str
    """``prefill`` or ``decode``."""
    launched_seconds: float
    """When the host launched the work."""
    ended_seconds: float
    """When the host saw the end of the work."""
    device_seconds: float
    """Time on the device, from the first kernel to the last."""
    prefill_sms: int
    """SMs of the prefill lane, in the division that the work ran at."""
    decode_sms: int
    """SMs of the decode lane, in the division that the work ran at."""
    beside: int
    """Whether the other lane was busy at the launch, 0 or 1."""
    requests: int
    tokens: int
    """Prompt tokens computed, or output tokens."""
    kv_tokens: int
    """KV tokens that a decode read."""
    compute_seconds: float
    """Compute of the work by the cost model."""
    memory_seconds: float
    """Memory traffic of the work by the cost model."""
    free_slots: int
    """KV slots (tokens) free or evictable when the work ended."""
    waiting: int
    """Offline requests in the pool."""


def lane_path(trace: Path) -> Path:
    """Return the lane trace's file beside the step trace: ``steps.lanes.csv`` for ``steps.csv``."""
    return trace.with_name(f"{trace.stem}.lanes{trace.suffix}")


class LaneTrace:
    """Writes a row for all that has run on a lane; nothing without a file."""

    def __init__(self, scheduler: LaneScheduler, lanes: Lanes, file: RowFile | None) -> None:
        self._scheduler, self._lanes, self._file = scheduler, lanes, file
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    def add(self, lane: str, ended: LaunchedBatch) -> None:
        """Take what has just ended on ``lane``."""
        if self._file is None:
            return
        prefill_sms, decode_sms = self._lanes.counts[ended.group]
        row = LaneRow(
            lane=lane,
            launched_seconds=ended.launched,
            ended_seconds=self.now(),
            device_seconds=ended.seconds,
            prefill_sms=prefill_sms,
            decode_sms=decode_sms,
            beside=int(ended.beside),
            requests=len(ended.batch.reqs),
            tokens=ended.load.tokens,
            kv_tokens=ended.load.kv_tokens,
            compute_seconds=ended.load.compute,
            memory_seconds=ended.load.memory,
            free_slots=self._scheduler.kv_cache.obtainable,
            waiting=len(self._scheduler.pool),
        )
        self._file.add(row)

    def flush(self) -> None:
        """Write what is buffered: nothing runs."""
        if self._file is not None:
            self._file.flush()
