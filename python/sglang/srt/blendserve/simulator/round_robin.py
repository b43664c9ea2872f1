"""Several engines as SGLang's data parallel controller feeds them: requests in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.simulator.result import Result
from sglang.srt.blendserve.simulator.workload import Workload


def dealt(requests: int, engines: int) -> list[NDArray[np.int64]]:
    """Return the requests of each engine, in the order of the file."""
    return [np.arange(first, requests, engines) for first in range(engines)]


def together(workload: Workload, parts: Sequence[Workload], results: Sequence[Result]) -> Result:
    """Return what engines come to that answer a part of ``workload`` each: the run takes as long as
    the slowest."""
    seconds = np.array([result.seconds for result in results])
    prompts = np.array([float(part.prompt_tokens.sum()) for part in parts])
    longest = float(seconds.max())
    busy = seconds / longest / len(results)

    def mean(name: str, weights: NDArray[np.float64]) -> float:
        return float(weights @ np.array([getattr(result, name) for result in results]))

    return replace(
        results[0],
        tokens_per_second=workload.tokens / longest,
        seconds=longest,
        steps=sum(result.steps for result in results),
        prefix_sharing=mean("prefix_sharing", prompts / prompts.sum()),
        prefix_sharing_optimum=workload.sharing,
        share_of_optimum=mean("share_of_optimum", busy),
        compute_busy=mean("compute_busy", busy),
        memory_busy=mean("memory_busy", busy),
        kv_occupancy=mean("kv_occupancy", np.full(len(results), 1 / len(results))),
        retractions=sum(result.retractions for result in results),
        scheduler_seconds=sum(result.scheduler_seconds for result in results),
        tried=[],
        engines=[
            {"requests": part.size, "busy_seconds": result.seconds, "ended_at": result.seconds}
            for part, result in zip(parts, results, strict=True)
        ],
    )
