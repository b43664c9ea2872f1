"""Where the records of one scheduler's steps go."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.srt.blendserve.runtime.overlap.lane_trace import LaneRow, lane_path
from sglang.srt.blendserve.runtime.record.metrics import BlendMetrics
from sglang.srt.blendserve.runtime.record.row_file import RowFile, rank_path
from sglang.srt.blendserve.runtime.record.step_record import StepRecord, StepSink

if TYPE_CHECKING:
    from sglang.srt.blendserve.runtime.scheduler import BlendScheduler

logger = logging.getLogger(__name__)


def step_sinks(scheduler: BlendScheduler, trace: str) -> list[StepSink]:
    """Metrics if SGLang's are on for this rank, and the trace file if one is named."""
    sinks: list[StepSink] = []
    metrics = scheduler.metrics_collector_context
    if metrics.current_scheduler_metrics_enabled:
        sinks.append(BlendMetrics(metrics.collector))
    if trace:
        path = _trace_path(scheduler, trace)
        sinks.append(RowFile(path, StepRecord))
        logger.info("BlendServe writes one row per step to %s", path)
    return sinks


def lane_trace(scheduler: BlendScheduler) -> RowFile | None:
    """The file of what ran on the two lanes, beside the trace file if one is named."""
    trace = scheduler.server_args.blendserve.trace
    return RowFile(lane_path(_trace_path(scheduler, trace)), LaneRow) if trace else None


def _trace_path(scheduler: BlendScheduler, trace: str) -> Path:
    ps = scheduler.ps
    dp_rank = ps.dp_rank if ps.dp_size > 1 else None
    return rank_path(trace, tp_rank=ps.tp_rank, tp_size=ps.tp_size, dp_rank=dp_rank)
