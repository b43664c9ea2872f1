"""Where the records of one scheduler's steps go."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.runtime.record.metrics import BlendMetrics
from sglang.srt.blendserve.runtime.record.row_file import RowFile
from sglang.srt.blendserve.runtime.record.step_record import StepRecord, StepSink
from sglang.srt.blendserve.runtime.view import SchedulerView

logger = logging.getLogger(__name__)


def step_sinks(trace: Path | None, collector: Any | None, view: SchedulerView) -> list[StepSink]:
    """Return the metrics and the step trace, each where it is wanted.

    ``trace``: this rank's file of the step trace. ``collector``: SGLang's collector of scheduler
    metrics, None where they are off. ``view``: whose steps they are.

    Raises OSError naming ``trace`` if it cannot be written.
    """
    sinks: list[StepSink] = []
    if collector is not None:
        sinks.append(BlendMetrics(collector, view))
    if trace is not None:
        sinks.append(RowFile(trace, StepRecord))
        logger.info("BlendServe writes one row per step to %s", trace)
    return sinks
