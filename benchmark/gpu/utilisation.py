"""How busy compute and memory were over a run, from its step log and from the GPU's own counters.

For each pass the cost model says how long its floating-point work and its memory traffic take at
the device's peaks; spread over the time until the next pass of the same kind and summed in windows,
that is the share of either peak that the engine reached (the paper's figure 10).
"""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel

Floats = NDArray[np.float64]

WINDOWS = 60

_QUERY = "timestamp,utilization.gpu,utilization.memory,power.draw,clocks.sm,memory.used"


class Sampler:
    """Samples ``nvidia-smi`` into a CSV file while it is entered; does nothing without one."""

    def __init__(self, path: Path, device: str) -> None:
        self._path, self._device = path, device
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sampler:
        if self._device != "cpu":
            with self._path.open("w") as file:
                self._process = subprocess.Popen(
                    ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,nounits", "-lms", "250"],
                    stdout=file,
                    stderr=subprocess.DEVNULL,
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def read_steps(path: Path, began: float, seconds: float) -> list[dict[str, Any]]:
    """The passes of one run; columns of `engine_plugin.STEP_COLUMNS`."""
    rows: list[dict[str, Any]] = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if None in row.values():  # cut off in the middle of a line
                break
            step: dict[str, Any] = {k: v if k == "kind" else float(v) for k, v in row.items()}
            if began <= step["time"] < began + seconds:
                rows.append(step)
    return rows


def busy(
    steps: Sequence[dict[str, Any]], began: float, seconds: float, cost: CostModel
) -> dict[str, Any]:
    """Shares of peak compute and bandwidth, in windows and on average."""
    compute, memory = np.zeros(WINDOWS), np.zeros(WINDOWS)
    for kinds in (("decode", "mixed"), ("prefill",)):
        lane = [step for step in steps if step["kind"] in kinds]
        if not lane:
            continue
        columns = {key: np.array([step[key] for step in lane]) for key in lane[0] if key != "kind"}
        begin = columns["time"] - began
        end = np.append(begin[1:], min(seconds, begin[-1] + _typical(begin)))
        _spread(compute, begin, end, seconds, _compute(columns, cost))
        _spread(memory, begin, end, seconds, _memory(columns, cost))
    width = seconds / WINDOWS
    return {
        "window_seconds": width,
        "compute": (compute / width).tolist(),
        "memory": (memory / width).tolist(),
        "mean_compute": float(compute.sum() / seconds),
        "mean_memory": float(memory.sum() / seconds),
        "passes": len(steps),
    }


def _compute(columns: dict[str, Floats], cost: CostModel) -> Floats:
    width = 4.0 * cost.model.layers * cost.model.attention_width / cost.device.peak_flops
    # One token alone attends to half a token; its scores are in ``prefill_scores``.
    linear = float(cost.prefill_seconds(1.0)) - width / 2
    return np.asarray(
        linear * columns["prefill_tokens"]
        + width * columns["prefill_scores"]
        + cost.decode_compute_seconds(columns["decodes"], columns["kv_tokens"])
    )


def _memory(columns: dict[str, Floats], cost: CostModel) -> Floats:
    tokens = columns["prefill_tokens"] + columns["decodes"]
    return np.asarray(cost.kv_read_seconds(columns["kv_tokens"]) + cost.weights_seconds(tokens))


def _typical(begin: Floats) -> float:
    return float(np.median(np.diff(begin))) if begin.size > 1 else 0.0


def _spread(windows: Floats, begin: Floats, end: Floats, seconds: float, work: Floats) -> None:
    """Add ``work``, even over each interval, to the windows it covers."""
    edges = np.linspace(0, seconds, WINDOWS + 1)
    length = np.maximum(end - begin, 1e-9)
    first = np.clip(np.searchsorted(edges, begin, "right") - 1, 0, WINDOWS - 1)
    last = np.clip(np.searchsorted(edges, end, "left") - 1, 0, WINDOWS - 1)
    for index in range(begin.size):
        for window in range(first[index], last[index] + 1):
            part = min(end[index], edges[window + 1]) - max(begin[index], edges[window])
            windows[window] += work[index] * max(part, 0.0) / length[index]


def draw(series: dict[str, dict[str, Any]], path: Path) -> bool:
    """The figure, one panel for each variant; False without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(series), 1, figsize=(8, 2.2 * len(series)), sharex=True, squeeze=False
    )
    for axis, (name, one) in zip(axes[:, 0], series.items(), strict=True):
        at = (np.arange(WINDOWS) + 0.5) * one["window_seconds"]
        axis.plot(at, one["compute"], label="compute")
        axis.plot(at, one["memory"], label="memory")
        axis.set(title=name, ylabel="share of peak", ylim=(0, 1.05))
        axis.legend(loc="lower left", ncols=2, fontsize="small")
    axes[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
