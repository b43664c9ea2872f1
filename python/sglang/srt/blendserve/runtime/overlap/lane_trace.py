"""The lane trace: one CSV row for each decode step and each prefill batch that ran on a lane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.blendserve.runtime.overlap.work import LaunchedBatch


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


def lane_row(
    lane: str,
    ended: LaunchedBatch,
    *,
    sms: tuple[int, int],
    now: float,
    free_slots: int,
    waiting: int,
) -> LaneRow:
    """Return the row of what has just ended on ``lane``, ``now`` seconds after the start.

    ``sms``: the division (prefill, decode) that it ran at. ``free_slots`` and ``waiting``: as of
    `LaneRow`.
    """
    return LaneRow(
        lane=lane,
        launched_seconds=ended.launched,
        ended_seconds=now,
        device_seconds=ended.seconds,
        prefill_sms=sms[0],
        decode_sms=sms[1],
        beside=int(ended.beside),
        requests=len(ended.batch.reqs),
        tokens=ended.load.tokens,
        kv_tokens=ended.load.kv_tokens,
        compute_seconds=ended.load.compute,
        memory_seconds=ended.load.memory,
        free_slots=free_slots,
        waiting=waiting,
    )
