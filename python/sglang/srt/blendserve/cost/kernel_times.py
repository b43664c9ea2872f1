"""Measured times of a device's kernels, and what lies between the shapes that were measured.

The tables in ``kernel_tables/`` hold GEMMs, prefill attention and decode attention of SGLang's own
kernels. A shape that was not measured is interpolated: GEMM times linearly in m, n and k, attention
times in the logarithms of batch and context. Beyond the table's edge a time grows with the work.
"""

from __future__ import annotations

import csv
import gzip
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from math import exp, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.layer_shape import HeadLayout

Floats = NDArray[np.float64]
Row = Mapping[str, str | float]
Kind = Literal["prefill", "decode"]

TABLES = ("gemm", "prefill-attention", "decode-attention")
"""Tables of a device, in the order in which `KernelTimes` takes them."""

_FOLDER = "kernel_tables"
_KERNELS = ("fa3", "flash_attention", "trtllm_mha")
"""Attention kernels that SGLang takes by default on the devices of the tables."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds over m, the rows of a product with fixed n and k."""

    rows: list[float]
    seconds: list[float]

    def __call__(self, rows: float) -> float:
        """Return the seconds of a product with so many ``rows``; 0 for none."""
        if rows <= 0:
            return 0.0
        x, y = self.rows, self.seconds
        if rows >= x[-1]:
            return y[-1] * rows / x[-1]
        at = bisect_right(x, rows)
        if at == 0:
            return y[0]
        share = (rows - x[at - 1]) / (x[at] - x[at - 1])
        return y[at - 1] + share * (y[at] - y[at - 1])

    def least(self) -> float:
        """Return the seconds of a row where the product is at its fastest."""
        return min(y / x for x, y in zip(self.rows, self.seconds, strict=True))

    def plus(self, other: Curve) -> Curve:
        """Return this curve and the other one, over the same rows, added up."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return Curve(self.rows, [mine + theirs for mine, theirs in pairs])

    def times(self, factor: float) -> Curve:
        """Return this curve with so many times the seconds."""
        return Curve(self.rows, [factor * seconds for seconds in self.seconds])


class Surface:
    """Seconds of attention over batch (sequences) and context (tokens), for one head layout."""

    def __init__(self, batches: Floats, contexts: Floats, seconds: Floats) -> None:
        """
        Args:
            batches: (b,) ascending. contexts: (c,) ascending.
            seconds: (b, c), without gaps.
        """
        self._batches = np.log(batches).tolist()
        self._contexts = np.log(contexts).tolist()
        self._seconds = np.log(seconds).tolist()

    def __call__(self, batch: float, context: float) -> float:
        """Return seconds; ``batch`` and ``context`` may lie between or beyond what was measured.

        Beyond the edge the time goes on as between the last two rows.
        """
        if batch <= 0 or context <= 0:
            return 0.0
        row, down = _place(self._batches, log(max(batch, 1.0)))
        column, right = _place(self._contexts, log(max(context, 1.0)))
        above, below = self._seconds[row], self._seconds[row + 1]
        first = above[column] + right * (above[column + 1] - above[column])
        second = below[column] + right * (below[column + 1] - below[column])
        return exp(first + down * (second - first))


Attention = Callable[[float, float], float]
"""Seconds of one layer's attention over batch (sequences) and context (tokens)."""


@dataclass(frozen=True, slots=True)
class _Between:
    """What lies between two surfaces, ``share`` of the way from the first."""

    first: Surface
    second: Surface
    share: float

    def __call__(self, batch: float, context: float) -> float:
        low, high = self.first(batch, context), self.second(batch, context)
        return low + self.share * (high - low)


class KernelTimes:
    """The kernel times of one device."""

    def __init__(self, gemm: Iterable[Row], prefill: Iterable[Row], decode: Iterable[Row]) -> None:
        """Take the rows of the three tables; see ``kernel_tables/README.md``."""
        self._products = _Products(gemm)
        self._attention: dict[Kind, dict[HeadLayout, Surface]] = {
            # Prefill follows the number of sequences more straightly than their length.
            "prefill": _surfaces(prefill, [(0,), (1,)]),
            "decode": _surfaces(decode, [(0, 1)]),
        }

    @classmethod
    def of(cls, device: str) -> KernelTimes:
        """Return the times of a device by name (case does not matter).

        Raises:
            ValueError: there is no table of it; names those that there are.
        """
        for known in measured_devices():
            if known.lower() == device.lower():
                return _of(known)
        known_ones = ", ".join(measured_devices())
        raise ValueError(f"no kernel times of device {device!r}; there are those of {known_ones}")

    def product(self, n: int, k: int) -> Curve:
        """Return the seconds of C[m, n] = A[m, k] B[k, n] over m."""
        return self._products.curve(n, k)

    def attention(self, kind: Kind, layout: HeadLayout) -> Attention:
        """Return the seconds of one layer's attention over batch and context.

        A number of query heads that was not measured is interpolated between its neighbours with
        the same KV heads.

        Raises ValueError: neither the head layout nor two that it lies between were measured.
        """
        known = self._attention[kind]
        if layout in known:
            return known[layout]
        alike = [at for at in known if at[1:] == layout[1:]]
        fewer = [at for at in alike if at.heads < layout.heads]
        more = [at for at in alike if at.heads > layout.heads]
        if not fewer or not more:
            raise ValueError(
                f"no {kind} attention was measured for {layout.heads} heads, {layout.kv_heads} KV "
                f"heads of width {layout.head_dim}"
            )
        low, high = max(fewer), min(more)
        share = (layout.heads - low.heads) / (high.heads - low.heads)
        return _Between(known[low], known[high], share)

    def layouts(self, kind: Kind) -> list[HeadLayout]:
        """Return the head layouts that were measured."""
        return sorted(self._attention[kind])


def measured_devices() -> tuple[str, ...]:
    """Return the names of the devices that there are tables of."""
    folder = files(__package__).joinpath(_FOLDER)
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix("-gemm.csv.gz") for name in names if "-gemm." in name))


def read_rows(device: str, table: str) -> list[dict[str, str]]:
    """Return the rows of one of the `TABLES`."""
    data = files(__package__).joinpath(_FOLDER, f"{device}-{table}.csv.gz").read_bytes()
    return list(csv.DictReader(gzip.decompress(data).decode().splitlines()))


@lru_cache(maxsize=4)
def _of(device: str) -> KernelTimes:
    return KernelTimes(*(read_rows(device, table) for table in TABLES))


class _Products:
    """GEMM times on the grid of all m, n and k that occur, gaps filled."""

    def __init__(self, rows: Iterable[Row]) -> None:
        table = [[float(row[name]) for name in ("m", "n", "k", "milliseconds")] for row in rows]
        values = np.array(table)
        self._axes = [np.unique(values[:, axis]) for axis in range(3)]
        places = tuple(np.searchsorted(self._axes[a], values[:, a]) for a in range(3))
        grid = np.full([axis.size for axis in self._axes], np.nan)
        grid[places] = values[:, 3] / 1e3
        self._grid = _filled(grid, self._axes, [(0, 1, 2)])

    def curve(self, n: int, k: int) -> Curve:
        _, wide, deep = self._axes
        row, right = _place(wide.tolist(), float(n))
        column, down = _place(deep.tolist(), float(k))
        corners = self._grid[:, row : row + 2, column : column + 2]
        left = corners[:, 0] + right * (corners[:, 1] - corners[:, 0])
        seconds = left[:, 0] + down * (left[:, 1] - left[:, 0])
        return Curve(self._axes[0].tolist(), seconds.tolist())


def _surfaces(rows: Iterable[Row], order: list[tuple[int, ...]]) -> dict[HeadLayout, Surface]:
    found: dict[HeadLayout, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row.get("kernel", _KERNELS[0]) not in _KERNELS:
            continue
        layout = HeadLayout(int(row["heads"]), int(row["kv_heads"]), int(row["head_dim"]))
        cell = float(row["batch"]), float(row["context"]), float(row["milliseconds"]) / 1e3
        found.setdefault(layout, []).append(cell)
    surfaces = {}
    for layout, cells in found.items():
        values = np.array(cells)
        batches, contexts = np.unique(values[:, 0]), np.unique(values[:, 1])
        if batches.size < 2 or contexts.size < 2:
            continue
        grid = np.full((batches.size, contexts.size), np.nan)
        places = np.searchsorted(batches, values[:, 0]), np.searchsorted(contexts, values[:, 1])
        grid[places] = np.log(values[:, 2])
        axes = [np.log(batches), np.log(contexts)]
        filled = _filled(grid, axes, order, edges=1.0)
        surfaces[layout] = Surface(batches, contexts, np.exp(filled))
    return surfaces


def _filled(
    grid: Floats, axes: list[Floats], order: list[tuple[int, ...]], edges: float = 0.0
) -> Floats:
    """Return ``grid`` with its gaps filled: by what lies between neighbours along an axis, and, at
    the edges, where one side is missing, by the last value known.

    Args:
        grid: values with NaN where nothing was measured.
        axes: coordinates along each dimension.
        order: which axes to go by, the best first; of several together the median counts.
        edges: what a value grows by at an edge for each unit of its coordinate: 1 where both are
            logarithms and time follows the work.

    Raises:
        ValueError: there is no value at all.
    """
    grid = grid.copy()
    steps = [(group, None) for group in order] + [(group, edges) for group in order]
    at = 0
    while np.isnan(grid).any():
        group, beyond = steps[at]
        found = np.stack([_along(grid, axes[axis], axis, beyond) for axis in group])
        known = np.isfinite(found).any(axis=0) & np.isnan(grid)
        if known.any():
            grid[known] = np.nanmedian(found[:, known], axis=0)
            at = 0
        elif at + 1 < len(steps):
            at += 1
        else:
            raise ValueError("a table without any row cannot be filled")
    return grid


def _along(grid: Floats, axis: Floats, number: int, edges: float | None) -> Floats:
    """Interpolate each line of ``grid`` along one axis; ``edges``: go on beyond what is known."""
    lines = np.moveaxis(grid, number, -1)
    found = np.full_like(lines, np.nan)
    for place in np.ndindex(lines.shape[:-1]):
        line = lines[place]
        known = np.flatnonzero(np.isfinite(line))
        if known.size < (1 if edges is not None else 2):
            continue
        first, last = known[0], known[-1]
        found[place][first : last + 1] = np.interp(axis[first : last + 1], axis[known], line[known])
        if edges is not None:
            found[place][:first] = line[first] - edges * (axis[first] - axis[:first])
            found[place][last + 1 :] = line[last] + edges * (axis[last + 1 :] - axis[last])
    return np.moveaxis(found, -1, number)


def _place(axis: list[float], value: float) -> tuple[int, float]:
    """Return the interval of ``axis`` for a value, and how far in it lies; beyond 0 and 1 outside
    the axis."""
    at = min(max(bisect_right(axis, value) - 1, 0), len(axis) - 2)
    return at, (value - axis[at]) / (axis[at + 1] - axis[at])
