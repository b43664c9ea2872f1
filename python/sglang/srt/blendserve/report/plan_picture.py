"""A plan as a picture: density along the scan order above, the prefix tree below.

Left is the compute-bound side of the scan, right the memory-bound side. In the tree a box is a
prefix: as wide as the requests that share it, as high as its tokens, coloured by density.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sglang.srt.blendserve.plan.merge import unit_densities
from sglang.srt.blendserve.plan.scan_order import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

_SMALLEST = 1 / 3000
"""Boxes that are narrower than this part of the picture are left out; nobody would see them."""
_DENSITY_RANGE = (1e-2, 1e2)
"""Densities beyond these have the colour of the nearest."""


def draw_plan(plan: Plan, path: str | Path, *, title: str = "") -> None:
    """Draw ``plan`` to ``path``; its suffix (png, svg, pdf) is the format.

    Raises ImportError where matplotlib is not installed and ValueError for an unknown suffix.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    colours = ScalarMappable(LogNorm(*_DENSITY_RANGE), "coolwarm_r")
    _draw_densities(above, plan, title)
    _draw_prefixes(below, plan, colours)
    figure.colorbar(colours, ax=below, label="compute density")
    figure.savefig(Path(path), dpi=150)


def _draw_densities(axes: Axes, plan: Plan, title: str) -> None:
    """Density of requests and of scheduling units along the scan."""
    count = plan.order.size
    scan = np.arange(count) + 0.5
    own = np.clip(plan.costs.density[plan.order], 1e-4, 1e6)
    dot = 3 if count <= 2000 else 1
    axes.plot(scan, own, ".", color="0.6", markersize=dot, rasterized=True, label="requests")
    axes.plot(scan, np.clip(unit_densities(plan), 1e-4, 1e6), color="black", label="units")
    axes.axhline(plan.root_density, color="tab:green", linestyle="--", label="whole pool")
    axes.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(yscale="log", ylabel="compute density", title=title)
    axes.legend(loc="upper right", frameon=False, markerscale=3)


def _draw_prefixes(axes: Axes, plan: Plan, colours: ScalarMappable) -> None:
    """The nodes of the prefix tree as boxes, coloured by density."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    count, tree = plan.order.size, plan.tree
    start, end = tree.leaf_start, tree.leaf_end
    seen = (end - start >= max(1.0, count * _SMALLEST)) & (tree.segment > 0)
    boxes = [
        Rectangle(
            (float(start[n]), float(tree.depth[n] - tree.segment[n])),
            float(end[n] - start[n]),
            float(tree.segment[n]),
        )
        for n in np.flatnonzero(seen)
    ]
    density = np.clip(plan.annotations.density[seen], *_DENSITY_RANGE)
    axes.add_collection(
        PatchCollection(
            boxes,
            facecolor=colours.to_rgba(density),
            edgecolor="white",
            linewidth=0.3 if len(boxes) < 500 else 0.0,
        )
    )
    if count * _SMALLEST > 1:  # single requests are too narrow for boxes: their outline instead
        leaves = tree.leaf_nodes
        axes.fill_between(
            np.arange(count) + 0.5,
            tree.depth[leaves] - tree.segment[leaves], tree.depth[leaves],
            color="0.85", linewidth=0, step="mid", zorder=0, rasterized=True,
        )  # fmt: skip
    axes.set(
        xlim=(0, max(count, 1)),
        ylim=(int(tree.depth.max()) or 1, 0),
        xlabel="requests in scan order, compute-bound to memory-bound",
        ylabel="prompt tokens",
    )
