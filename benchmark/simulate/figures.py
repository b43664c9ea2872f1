"""Draw the figures of docs/results.md from ``benchmark/simulate/results``.

    python benchmark/simulate/figures.py

Writes ``docs/images/simulate-*.svg``, the same bytes each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from cells import RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from studies import DENSITIES, SHARINGS, TRACES, mix

from tables import best, peers, rows, sequential_share

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


def traces() -> Figure:
    """Tokens per second of every policy on the four traces, by engine, and the bound."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 6))
    for axis, engine in zip(axes, ("overlap", "sequential"), strict=True):
        names = ["dfs", *[name for name in peers(engine) if name != "dfs"]]
        names = [name for name in names if name != "blendserve"] + ["blendserve"]
        _bars(axis, engine, names)
    axes[0].legend(ncols=5, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _bars(axis: Axes, engine: str, names: list[str]) -> None:
    width = 0.8 / len(names)
    shades = plt.get_cmap("Greys")(np.linspace(0.25, 0.75, len(names)))
    for place, name in enumerate(names):
        colour = {"blendserve": BLUE, "paper": ORANGE}.get(name, shades[place])
        found = [best(rows("traces", policy=name, workload=w, engine=engine)) for w in TRACES]
        shares = [0.0 if row is None else row["result"]["share_of_optimum"] for row in found]
        spots = np.arange(len(TRACES)) + (place - (len(names) - 1) / 2) * width
        axis.bar(spots, shares, width * 0.9, color=colour, label=name)
    axis.axhline(1, color=DARK, linewidth=0.8, linestyle="--")
    if engine == "sequential":
        for place, workload in enumerate(TRACES):
            most = sequential_share(workload)
            axis.hlines(most, place - 0.42, place + 0.42, color=ORANGE, linewidth=1)
    axis.set_xticks(range(len(TRACES)), TRACES)
    axis.set_ylim(0, 1.05)
    axis.set_ylabel("share of the bound")
    axis.set_title(f"engine {engine}", loc="left", fontsize=9)


def grid() -> Figure:
    """Gain over DFS at each mix of density and sharing."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
    versus = (("dfs", 2048, "DFS, chunk 2048"), ("dfs", None, "DFS, best chunk of 512 and 2048"))
    for axis, (policy, chunk, title) in zip(axes, versus, strict=True):
        gain = np.full((len(SHARINGS), len(DENSITIES)), np.nan)
        for y, sharing in enumerate(SHARINGS):
            for x, density in enumerate(DENSITIES):
                wanted: dict[str, Any] = {"workload": mix(density, sharing)}
                ours = best(rows("grid", policy="blendserve", **wanted))
                extra = {} if chunk is None else {"chunk": chunk}
                other = best(rows("grid", policy=policy, **wanted, **extra))
                if ours and other:
                    rates = [r["result"]["tokens_per_second"] for r in (ours, other)]
                    gain[y, x] = 100 * (rates[0] / rates[1] - 1)
        shown = axis.imshow(gain, cmap="Blues", origin="lower", aspect="auto", vmin=0, vmax=70)
        for (y, x), value in np.ndenumerate(gain):
            if not np.isnan(value):
                colour = "white" if value > 40 else "black"
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
