"""The cells of `documents x questions` as figures and as the table of the page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from document_cells import Cell

BASELINE = "fcfs"
VLLM = "vllm"
HEADERS = ("peer", "rounds", "seconds", "tokens/s", "sharing", "over fcfs", "over vLLM",
           "answers as fcfs")  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and most; None for no values."""
    if not values:
        return None
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def report(cells: Iterable[Cell]) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures of each peer, by file order and peer.

    Ratios are taken within a round, against the cell of `BASELINE` or `VLLM` in the same round and
    order, and only where both are there.
    """
    cells = list(cells)
    at = {cell.key: cell for cell in cells}
    by_order: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        by_order.setdefault(cell.order, {}).setdefault(cell.peer, []).append(cell)

    def figures(mine: list[Cell]) -> dict[str, Any]:
        def ratios(peer: str) -> dict[str, float] | None:
            pairs = ((cell, at.get(cell.key._replace(peer=peer))) for cell in mine)
            return spread([a.tokens_per_second / b.tokens_per_second for a, b in pairs if b])

        firsts = ((cell, at.get(cell.key._replace(peer=BASELINE))) for cell in mine)
        return {
            "rounds": len(mine),
            "completed": sum(cell.completed for cell in mine),
            "failed": sum(cell.failed for cell in mine),
            "seconds": spread([cell.seconds for cell in mine]),
            "tokens_per_second": spread([cell.tokens_per_second for cell in mine]),
            "sharing": spread([cell.sharing for cell in mine]),
            "optimum": next((cell.optimum for cell in mine if cell.optimum is not None), None),
            "over_fcfs": ratios(BASELINE),
            "over_vllm": ratios(VLLM),
            "answers_as_fcfs": spread([a.equal_answers(b) for a, b in firsts if b]),
        }

    return {
        order: {peer: figures(mine) for peer, mine in peers.items()}
        for order, peers in by_order.items()
    }


def table(cells: Iterable[Cell], order: str) -> str:
    """The Markdown table of one file order, slowest peer first; empty if it has no cells."""
    peers = report(cells).get(order)
    if not peers:
        return ""
    rows = ["| " + " | ".join(HEADERS) + " |", "| --- |" + " ---: |" * (len(HEADERS) - 1)]
    for name, mine in sorted(
        peers.items(), key=lambda item: item[1]["tokens_per_second"]["median"]
    ):
        cells_ = (
            name,
            str(mine["rounds"]),
            _range(mine["seconds"], "{:.1f}".format),
            _range(mine["tokens_per_second"], "{:,.0f}".format),
            _range(mine["sharing"], "{:.3f}".format),
            _range(mine["over_fcfs"], "{:.2f}".format),
            _range(mine["over_vllm"], "{:.2f}".format),
            _range(mine["answers_as_fcfs"], "{:.0f}".format),
        )
        rows.append("| " + " | ".join(cells_) + " |")
    return "\n".join(rows)


def _range(values: dict[str, float] | None, form: Callable[[float], str]) -> str:
    """`median (least to most)`, or the one value where all are the same as written."""
    if values is None:
        return "-"
    median, least, most = (form(values[name]) for name in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} to {most})"
