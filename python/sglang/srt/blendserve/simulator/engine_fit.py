"""What an engine's steps take beside their kernels, from a step trace (``--blendserve-trace``).

Kernels alone, in a loop, run faster than in an engine: between them there are Python, sampling and
the scheduler, and caches are cold. Two numbers say it: how many times the kernels' time the
kernels take there, and a fixed time per step.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.simulator.step_cost import StepModel, StepWork

Floats = NDArray[np.float64]

_PREFILL = ("prefill_compute", "prefill_memory", "prefill_online")
_DECODE = ("decode_compute", "decode_memory", "decode_online")
_KV = ("kv_compute", "kv_memory", "kv_online")
_LEAST_STEPS = 50
"""Steps that a trace must have to be fitted."""
_ROUNDS = 50
"""Rounds of reweighting, far more than the fit needs to settle."""
_LEAST_RESIDUAL = 1e-4
"""Seconds; differences below this do not make a step count more."""


@dataclass(frozen=True, slots=True)
class EngineFit:
    """Seconds of a step = ``slowness`` * seconds of its kernels + ``overhead``."""

    slowness: float
    overhead: float
    """Seconds."""
    steps: int
    error: float
    """Median of |predicted - measured| / measured over the steps."""
    total_error: float
    """Predicted over measured time of all steps, less 1."""


def fit_engine(trace: Path, cost: StepModel) -> EngineFit:
    """Fit a trace against the kernels' times by ``cost`` (engine `sequential`, no overhead).

    Least absolute errors: a step during which the machine did something else counts little.
    Raises ValueError naming the file and what is missing.
    """
    work, measured = read_steps(trace)
    nothing = cost.step(StepWork(0, 0.0, 0, 0, 0)).seconds
    kernels = np.array([cost.step(one).seconds for one in work]) - nothing
    if measured.size < _LEAST_STEPS:
        raise ValueError(
            f"{trace}: {measured.size} steps; {_LEAST_STEPS} are needed, of a run with both "
            "prefill and decode"
        )
    columns = np.stack((kernels, np.ones_like(kernels)), axis=1)
    weights = np.ones_like(measured)
    found: Floats = np.zeros(2)
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        solved = np.linalg.lstsq(columns * root[:, None], measured * root, rcond=None)[0]
        found = np.asarray(solved, dtype=np.float64)
        residual = np.abs(columns @ found - measured)
        weights = 1 / np.maximum(residual, _LEAST_RESIDUAL)
    slowness, overhead = float(found[0]), float(found[1])
    if overhead < 0:
        slowness, overhead = float(np.median(measured / kernels)), 0.0
    if not slowness > 0:
        raise ValueError(f"{trace}: steps with more work do not take longer; is it this machine's?")
    predicted = slowness * kernels + overhead
    return EngineFit(
        slowness=slowness,
        overhead=overhead,
        steps=measured.size,
        error=float(np.median(np.abs(predicted - measured) / measured)),
        total_error=float(predicted.sum() / measured.sum() - 1),
    )


def read_steps(trace: Path) -> tuple[list[StepWork], Floats]:
    """The work of each step that computed something, and (n,) seconds that each took.

    A trace does not say how long a context the prompt tokens attend to nor how many prompts end in
    a step: both are left out, and the fit's slowness has them in it. Raises ValueError.
    """
    work, seconds = [], []
    try:
        with trace.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    prefill, decodes, kv = (
                        sum(int(row[name]) for name in names) for names in (_PREFILL, _DECODE, _KV)
                    )
                    took = float(row["measured_seconds"])
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"{trace}:{number}: not a step trace, {error}; --steps takes the file "
                        "that a run with --blendserve-trace has written"
                    ) from None
                if prefill + decodes and took > 0:
                    work.append(StepWork(prefill, 0.0, 0, decodes, kv))
                    seconds.append(took)
    except OSError as error:
        raise ValueError(f"{trace}: cannot be read: {error.strerror}") from None
    return work, np.array(seconds)
