"""The figures of all variants beside each other: medians, ratios, share of the optimum."""

from __future__ import annotations

from statistics import median
from typing import Any


def summarise(results: dict[str, Any], optimum: dict[str, float] | None) -> list[dict[str, Any]]:
    """One row for each variant and trace.

    ``results``: what `engine_run` wrote, by variant, each with ``ours`` and ``what``. ``optimum``:
    least seconds of a workload by ``trace/seed``, or None where nothing was calibrated. Ratios are
    of medians over paired rounds: the rounds that both variants finished, which ran the same
    workloads.
    """
    rows = []
    traces = sorted({run["about"]["trace"] for r in results.values() for run in r.get("runs", ())})
    for trace in traces:
        speeds = {
            name: {
                run["about"]["seed"]: run["tokens_per_second"]
                for run in result.get("runs", ())
                if run["about"]["trace"] == trace
            }
            for name, result in results.items()
        }
        speeds = {name: of for name, of in speeds.items() if of}
        stock = {name: of for name, of in speeds.items() if not results[name]["ours"]}
        best = max(stock, key=lambda name: median(stock[name].values()), default=None)
        for name, of in speeds.items():
            runs = [r for r in results[name]["runs"] if r["about"]["trace"] == trace]
            rows.append(
                {
                    "trace": trace,
                    "variant": name,
                    "what": results[name]["what"],
                    "rounds": len(of),
                    "tokens_per_second": median(of.values()),
                    "lowest": min(of.values()),
                    "highest": max(of.values()),
                    "best_stock": best,
                    "against_best_stock": _ratio(of, stock.get(best or "", {})),
                    "against_dfs": _ratio(of, speeds.get("dfs", {})),
                    "share_of_optimum": _share(runs, optimum),
                    "cached_tokens": median(r["cached_tokens"] for r in runs),
                    "retractions": median(r["retractions"] for r in runs),
                    "wrong_lengths": sum(r["wrong_lengths"] for r in runs),
                }
            )
    return sorted(rows, key=lambda row: (row["trace"], -row["tokens_per_second"]))


def _ratio(one: dict[int, float], other: dict[int, float]) -> float | None:
    """Median of the ratios of the rounds that both have."""
    both = [one[seed] / other[seed] for seed in one if seed in other]
    return median(both) if both else None


def _share(runs: list[dict[str, Any]], optimum: dict[str, float] | None) -> float | None:
    if not optimum:
        return None
    return median(
        optimum[f"{r['about']['trace']}/{r['about']['seed']}"] / r["seconds"] for r in runs
    )


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| trace | variant | tokens/s | lowest to highest | rounds | against best stock "
        "| against dfs | share of optimum | wrong lengths |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        against, dfs, share = (
            "" if row[name] is None else f"{row[name]:.3f}"
            for name in ("against_best_stock", "against_dfs", "share_of_optimum")
        )
        lines.append(
            f"| {row['trace']} | {row['variant']} | {row['tokens_per_second']:.0f} "
            f"| {row['lowest']:.0f} to {row['highest']:.0f} | {row['rounds']} | {against} "
            f"| {dfs} | {share} | {row['wrong_lengths']} |"
        )
    return "\n".join(lines)
