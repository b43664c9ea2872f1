"""Draw the figures of docs/results.md from ``benchmark/simulate/results``.

    python benchmark/simulate/figures.py

Writes ``docs/images/simulate-*.svg``, the same bytes each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from cells import RESULTS
from matplotlib.figure import Figure
from studies import DENSITIES, MEASURED_ENGINES, RELEASED, SHARINGS, TRACES, mix
from study_tables import gain

from tables import rows

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"

BLUE, GREY, DARK, ORANGE = "#2066a8", "#b9bec4", "#6b7280", "#d9822b"

plt.rcParams.update(
    {
        "svg.hashsalt": "blendserve",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)


BARS: dict[str, tuple[str, dict[str, Any]]] = {
    "dfs, SGLang's defaults": ("#e2e5e9", {"policy": "dfs", "chunk": RELEASED[0]}),
    "dfs, chunk 2048": ("#c6ccd3", {"policy": "dfs", "chunk": 2048}),
    "fcfs (shuffled), SGLang's defaults": ("#a3abb5", {"policy": "fcfs", "chunk": RELEASED[0]}),
    "fcfs (shuffled), chunk 512": (DARK, {"policy": "fcfs", "chunk": 512}),
    "blendserve": (BLUE, {"policy": "blendserve"}),
}


def traces() -> Figure:
    """Tokens per second of every policy on the four traces, by engine."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
    for axis, engine in zip(axes, MEASURED_ENGINES, strict=True):
        for place, (name, (colour, wanted)) in enumerate(BARS.items()):
            where = {"engine": engine, **wanted}
            found = [[row["result"]["tokens_per_second"] for row in rows("measured", workload=w,
                                                                         **where)]
                     for w in TRACES]  # fmt: skip
            spots = np.arange(len(TRACES)) + (place - (len(BARS) - 1) / 2) * 0.16
            heights = [median(rates) / 1000 if rates else 0.0 for rates in found]
            axis.bar(spots, heights, 0.145, color=colour, label=name)
        axis.set_xticks(range(len(TRACES)), TRACES)
        axis.set_title(f"engine {engine}", loc="left", fontsize=9)
    axes[0].set_ylabel("thousand tokens/s")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, ncols=3, fontsize=8, frameon=False, loc="outside upper center")
    return figure


def grid() -> Figure:
    """Gain at each mix of density and sharing."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
    versus: tuple[tuple[dict[str, Any], str], ...] = (
        ({"policy": "dfs", "chunk": 2048}, "DFS, chunk 2048"),
        ({}, "the best of DFS and fcfs"),
    )
    for axis, (peer, title) in zip(axes, versus, strict=True):
        gains = np.full((len(SHARINGS), len(DENSITIES)), np.nan)
        for y, sharing in enumerate(SHARINGS):
            for x, density in enumerate(DENSITIES):
                found = gain("grid", peer, {"workload": mix(density, sharing)})
                gains[y, x] = np.nan if found is None else found
        shown = axis.imshow(gains, cmap="Blues", origin="lower", aspect="auto", vmin=0, vmax=40)
        for (y, x), value in np.ndenumerate(gains):
            if not np.isnan(value):
                colour = "white" if value > 24 else "black"
                axis.text(x, y, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7)
        axis.set_xticks(range(len(DENSITIES)), [f"{d / 100:.2f}" for d in DENSITIES], rotation=60)
        axis.set_yticks(range(len(SHARINGS)), [f"{s / 100:.2f}" for s in SHARINGS])
        axis.set_xlabel("compute density")
        axis.set_title(f"gain over {title}, %", loc="left", fontsize=9)
    axes[0].set_ylabel("prefix sharing")
    figure.colorbar(shown, ax=axes, shrink=0.9)
    return figure


def steps() -> Figure:
    """How busy compute and memory are over the run (the paper's figure 10)."""
    document = json.loads((RESULTS / "steps.json").read_text(encoding="utf-8"))
    runs = document["policies"]
    longest = max(run["seconds"] for run in runs.values())
    figure, axes = plt.subplots(len(runs), 1, figsize=(8, 4.4), sharex=True)
    for axis, (policy, run) in zip(axes, sorted(runs.items(), reverse=True), strict=True):
        hours = (np.arange(document["spans"]) + 0.5) / document["spans"] * run["seconds"] / 3600
        axis.plot(hours, run["compute_busy"], color=ORANGE, linewidth=1, label="compute busy")
        axis.plot(hours, run["memory_busy"], color=BLUE, linewidth=1, label="memory busy")
        axis.plot(hours, run["kv_full"], color=GREY, linewidth=1, label="KV cache read")
        chunk = f", chunk {run['chunk']}" if run["chunk"] else ""
        axis.set_title(f"{policy}{chunk}: {run['seconds'] / 3600:.2f} h", loc="left", fontsize=9)
        axis.set_ylim(0, 1.05)
        axis.set_xlim(0, longest / 3600)
        axis.set_ylabel("share of each step")
    axes[-1].set_xlabel("hours on the device")
    axes[0].legend(ncols=3, fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {"traces": traces, "grid": grid, "steps": steps}


def main() -> None:
    """Draw all figures."""
    IMAGES.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(IMAGES / f"simulate-{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
