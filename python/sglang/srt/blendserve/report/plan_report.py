"""A plan as numbers and as text: totals, and the first levels of the annotated tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sglang.srt.blendserve.plan.scan_order import Plan

_ERRORS_SHOWN = 10
"""Refused lines that a text report shows; JSON has all."""

Describe = Callable[[int, int, int], str]
"""Text for the segment of a node: of which request, from which token to which."""


def plan_summary(plan: Plan) -> dict[str, Any]:
    """Totals of a plan for JSON: tokens, seconds, densities (null where infinite)."""
    planned = plan.order
    prompt = plan.prompt_tokens[planned]
    return {
        "requests": int(planned.size),
        "prompt_tokens": int(prompt.sum()),
        "prompt_tokens_median": float(np.median(prompt)) if prompt.size else 0.0,
        "prompt_tokens_longest": int(prompt.max(initial=0)),
        "output_tokens": float(plan.output_tokens[planned].sum()),
        "sharing": plan.sharing,
        "root_density": _finite(plan.root_density),
        "compute_seconds": plan.total_compute_seconds,
        "memory_seconds": plan.total_memory_seconds,
        "optimum_seconds": plan.optimum_seconds,
        "bound_seconds": plan.bound_seconds,
    }


def tree_summary(
    plan: Plan, *, levels: int, children: int, describe: Describe | None = None
) -> dict[str, Any]:
    """The first ``levels`` of the annotated tree as nested mappings for JSON.

    Of each node the ``children`` heaviest (most seconds of work) are listed, in scan order; the
    others are summed up under ``others``. ``describe`` adds a ``text`` to each node.
    """
    return _node(plan, 0, levels, children, describe)


def _node(
    plan: Plan, node: int, levels: int, children: int, describe: Describe | None
) -> dict[str, Any]:
    tree, notes = plan.tree, plan.annotations
    result: dict[str, Any] = {
        "tokens": int(tree.segment[node]),
        **_totals(plan, np.array([node])),
        "sharing": float(notes.sharing[node]),
        "request": int(tree.request[node]) if tree.request[node] >= 0 else None,
    }
    if describe is not None and node:
        request = int(tree.leaf_requests[tree.leaf_start[node]])
        end = int(tree.depth[node])
        result["text"] = describe(request, end - int(tree.segment[node]), end)
    below = np.flatnonzero(tree.parent == node)
    below = below[below != node]
    if levels <= 0 or below.size == 0:
        return result
    work = notes.compute_seconds[below] + notes.memory_seconds[below]
    listed = np.sort(below[np.argsort(-work, kind="stable")[:children]])
    result["children"] = [
        _node(plan, int(child), levels - 1, children, describe) for child in listed
    ]
    others = np.setdiff1d(below, listed)
    if others.size:
        result["others"] = {"nodes": int(others.size), **_totals(plan, others)}
    return result


def _totals(plan: Plan, nodes: np.ndarray[Any, np.dtype[np.integer[Any]]]) -> dict[str, Any]:
    """Sums of the annotations of ``nodes``."""
    notes = plan.annotations
    compute = float(notes.compute_seconds[nodes].sum())
    memory = float(notes.memory_seconds[nodes].sum())
    return {
        "requests": int(notes.requests[nodes].sum()),
        "prompt_tokens": int(notes.prompt_tokens[nodes].sum()),
        "output_tokens": float(notes.output_tokens[nodes].sum()),
        "compute_seconds": compute,
        "memory_seconds": memory,
        "density": compute / memory if memory > 0 else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def tree_lines(root: dict[str, Any]) -> Iterator[str]:
    """The tree of `tree_summary` as lines of text, one a node, with a head line."""
    yield f"{'density':>9} {'requests':>9} {'compute':>9} {'memory':>9} {'shared':>7}  prefix"
    yield from _tree_lines(root, "", "all requests")


def _tree_lines(node: dict[str, Any], indent: str, label: str) -> Iterator[str]:
    yield f"{_row(node)}  {label}"
    children = node.get("children", [])
    others = node.get("others")
    # `label` starts with the branch of the node itself; below it only the line goes on.
    for index, child in enumerate(children):
        last = index == len(children) - 1 and others is None
        branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _tree_lines(child, indent + below, indent + branch + _label(child))
    if others is not None:
        yield f"{_row(others)}  {indent}└─ … {others['nodes']:,} more"


def _label(node: dict[str, Any]) -> str:
    text = f" {node['text']}" if node.get("text") else ""
    return f"{_count(node['tokens'], 'token')}{text}"


def _row(node: dict[str, Any]) -> str:
    shared = f"{100 * node['sharing']:.1f} %" if "sharing" in node else ""
    return (
        f"{show_density(node['density']):>9} {node['requests']:>9,} "
        f"{show_seconds(node['compute_seconds']):>9} {show_seconds(node['memory_seconds']):>9} "
        f"{shared:>7}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def show_density(density: float | None) -> str:
    """A density in three digits; ∞ for None, which stands for no memory work."""
    return "∞" if density is None else f"{density:.3g}" if density < 1000 else f"{density:,.0f}"


def show_seconds(seconds: float) -> str:
    """Seconds in three digits with the unit that suits them."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * (2 if size > 1 else 1):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"


def report_lines(report: dict[str, Any]) -> list[str]:
    """What ``sglang-blendserve plan --json`` prints, as lines of text."""
    device, density, rates = report["device"], report["root_density"], report["rates"]
    kind = "compute-bound" if density is None or density > 1 else "memory-bound"
    saved = f"{100 * report['sharing']:.1f} % of prompt tokens"
    rows = [
        ("requests", f"{report['requests']:,}"),
        ("prompt tokens", f"{report['prompt_tokens']:,} (median "
         f"{report['prompt_tokens_median']:,.0f}, longest {report['prompt_tokens_longest']:,})"),
        ("output tokens", f"{report['output_tokens']:,.0f} ({report['output_tokens_source']})"),
        ("prefix sharing", saved),
        ("model", f"{report['model']['name']}: {report['model']['parameters'] / 1e9:.3g}e9 "
         f"parameters, {report['model']['kv_bytes_per_token']:,.0f} KV bytes a token"),
        ("device", f"{device['name']}: {device['peak_flops'] / 1e12:.3g} TFLOP/s, "
         f"{device['bandwidth'] / 1e9:.4g} GB/s"),
        ("rates", f"{rates['flops'] / 1e12:.3g} TFLOP/s, {rates['bandwidth'] / 1e9:.4g} GB/s "
         f"({rates['source']})"),
        ("compute", f"{show_seconds(report['compute_seconds'])}, shared prefixes once "
         f"({show_seconds(report['compute_seconds_unshared'])} without sharing)"),
        ("memory", f"{show_seconds(report['memory_seconds'])} reading the KV cache"),
        ("density", f"{show_density(density)} ({kind})"),
        ("optimum", f"{show_seconds(report['optimum_seconds'])} with perfect overlap"),
    ]  # fmt: skip
    if report["bound_seconds"] is not None:
        rows.append(("with weights", f"{show_seconds(report['bound_seconds'])} "
                     f"(KV cache of {report['kv_slots']:,} tokens)"))  # fmt: skip
    else:
        rows.append(("with weights", "no estimate: the weights do not fit the device's memory"))
    lines = [f"{name:<15} {value}" for name, value in rows]
    refused = report["refused"]
    if refused:
        lines.append(f"{'refused':<15} {_count(len(refused), 'line')}, not planned:")
        lines += [f"{'':<15} {error['message']}" for error in refused[:_ERRORS_SHOWN]]
        if len(refused) > _ERRORS_SHOWN:
            lines.append(f"{'':<15} … {len(refused) - _ERRORS_SHOWN:,} more")
    return [*lines, "", *tree_lines(report["tree"])]
