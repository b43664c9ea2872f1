"""Tables of the sweeps and of the paper's figures beside ours, for `tables`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from division import ROUND_ROBIN, SUB_TREES
from studies import (
    ABLATIONS,
    DENSITIES,
    EACH,
    LENGTHS,
    MAIN,
    MODELS,
    REPLICAS,
    SHARINGS,
    SMALL_PARTS,
    SWEEP,
    VARIED,
    mix,
)

from tables import ENGINE_CHUNK, TRACES, Row, best, figure, rate, ratio, rows, share, table

_OVER = ("dfs 512", f"dfs {ENGINE_CHUNK}", "fcfs 512")


def _sweep(study: str, settings: dict[str, Row], head: str) -> str:
    """One line a setting: shares of the bound, and what blendserve gains."""
    body = []
    for name, wanted in settings.items():
        ours = best(rows(study, policy="blendserve", **wanted))
        others = [
            best(rows(study, policy=policy, chunk=int(chunk), **wanted))
            for policy, chunk in (over.split() for over in _OVER)
        ]
        gains = [ratio(ours, other) for other in others]
        kept = [figure(ours, "prefix_sharing"), figure(ours, "retractions", "d")]
        body.append([name, share(ours), *map(share, others), *gains, *kept])
    over = [f"over {name}" for name in _OVER]
    return table([head, "blendserve", *_OVER, *over, "sharing", "retractions"], body)


def _variance() -> str:
    return _sweep("variance", {n: {"workload": w} for n, w in VARIED.items()}, "long outputs")


def _pool() -> str:
    sizes = {"200,000": 200_000, "426,784 (what fits)": None, "800,000": 800_000}
    return _sweep("pool", {n: {"kv_slots": s} for n, s in sizes.items()}, "KV cache, tokens")


def _models() -> str:
    names = {
        f"{model}, {f'{tp} x ' if tp > 1 else ''}{device}": {"model": model, "device": device}
        for model, device, tp in MODELS
    }
    return _sweep("models", names, "model, device")


def _interference() -> str:
    return _sweep("interference", {w: {"workload": w} for w in TRACES}, "overlap alone slowed")


def _scale() -> str:
    return _sweep("scale", {f"1/{k}": {"scale": k} for k in (4, 8, 16)}, "replica")


def _convergence() -> str:
    counts = sorted({row["cell"]["requests"] for row in rows("convergence")})
    return _sweep("convergence", {f"{n:,}": {"requests": n} for n in counts}, "requests")


def _seeds() -> str:
    """One line a trace: the median of the seeds, and the least and the most."""
    body = []
    for workload in TRACES:
        seeds = sorted({row["cell"]["seed"] for row in rows("seeds", workload=workload)})
        shares: list[float] = []
        gains: dict[str, list[float]] = {over: [] for over in _OVER}
        for seed in seeds:
            wanted = {"workload": workload, "seed": seed}
            ours = best(rows("seeds", policy="blendserve", **wanted))
            if ours is None:
                continue
            shares.append(float(ours["result"]["share_of_optimum"]))
            for over in _OVER:
                policy, chunk = over.split()
                other = best(rows("seeds", policy=policy, chunk=int(chunk), **wanted))
                if other is not None:
                    gains[over].append(rate(ours) / rate(other))
        columns = [(shares, ".3f"), *((gains[over], ".2f") for over in _OVER)]
        cells = [
            f"{np.median(x):{f}} ({min(x):{f}} to {max(x):{f}})" if x else "-" for x, f in columns
        ]
        body.append([workload, str(len(shares)), *cells])
    head = ["trace", "seeds", "share of the bound", *(f"over {name}" for name in _OVER)]
    return table(head, body)


def _options(study: str, variants: dict[str, dict[str, object]], head: str) -> str:
    """One line a variant of our policy; two traces beside each other for each kind of run."""
    kinds = {
        f"{requests // 1000}k{' SGLang' if simulation == 'full' else ''}": {
            "requests": requests,
            "simulation": simulation,
        }
        for requests, simulation in ((MAIN, "fast"), (SWEEP, "fast"), (SWEEP, "full"))
        if rows(study, requests=requests, simulation=simulation)
    }
    traces = ("trace1", "trace4")
    body = []
    for name, options in variants.items():
        found = [
            [best(rows(study, workload=w, options=dict(options), **kind)) for w in traces]
            for kind in kinds.values()
        ]
        line = [name, *(share(row) for pair in found for row in pair)]
        for key, form in (("prefix_sharing", ".4f"), ("retractions", "d")):
            line += [figure(row, key, form) for row in found[0]]
        body.append(line)
    columns = [*kinds, "sharing", "retractions"]
    return table([head, *(f"{c}, {t}" for c in columns for t in traces)], body)


def _parts() -> str:
    """What the absence of a part does to the speed, per cent, for each seed."""
    body = []
    for name in SMALL_PARTS:
        line: list[str] = []
        everywhere: list[float] = []
        for workload in TRACES:
            off, on = (
                {row["cell"]["seed"]: rate(row) for row in rows(study, **wanted)}
                for study, wanted in (
                    ("parts", {"workload": workload, "options": dict(ABLATIONS[name])}),
                    ("seeds", {"workload": workload, "policy": "blendserve"}),
                )
            )
            gains = [100 * (off[seed] / on[seed] - 1) for seed in off if seed in on]
            everywhere += gains
            line.append(", ".join(f"{gain:+.1f}" for gain in gains) or "-")
        mean = f"{np.mean(everywhere):+.1f}" if everywhere else "-"
        body.append([name, *line, mean])
    return table(["switched off", *TRACES, "mean"], body)


def _scanner() -> str:
    """The paper's own scanner, a line a trace."""
    body = []
    for workload in TRACES:
        row = best(rows("paper", workload=workload))
        body.append([workload, share(row), figure(row, "retractions", "d")])
    return table(["the paper's scanner", "share of the bound", "retractions"], body)


def _ranks() -> str:
    body = []
    for count in REPLICAS[1:]:
        for size, one_size, division in (
            (MAIN, MAIN, ROUND_ROBIN),
            (MAIN, MAIN, SUB_TREES),
            (EACH * count, EACH, ROUND_ROBIN),
        ):
            row = best(rows("ranks", replicas=count, requests=size, division=division))
            one = best(rows("ranks", replicas=1, requests=one_size))
            line = [str(count), f"{size:,}", division]
            if row is None or one is None:
                body.append([*line, *["-"] * 5])
                continue
            seconds = row["result"]["seconds_of_each"]
            line += [figure(row, "tokens_per_second", ".0f"), ratio(row, one)]
            line += [f"{rate(row) / rate(one) / count:.2f}"]
            line += [f"{np.mean(seconds) / max(seconds):.3f}", figure(row, "prefix_sharing", ".4f")]
            body.append(line)
    head = ["replicas", "requests", "division", "tokens/s", "times one", "per replica",
            "mean / longest time", "sharing"]  # fmt: skip
    return table(head, body)


def _engines() -> str:
    ones = {row["cell"]["seed"]: row for row in rows("engines", replicas=1)}
    body = []
    for row in rows("engines"):
        cell, result = row["cell"], row["result"]
        count = cell["replicas"]
        one = ones.get(cell["seed"])
        if one is None or count == 1:
            continue
        seconds = result["seconds_of_each"]
        fleet = cell["fleet"]
        strength = sum(fleet.get("speeds", [1] * count)) - 0.5 * ("dies_after" in fleet)
        special = fleet | ({"seed": cell["seed"]} if cell["seed"] else {})
        what = ", ".join(f"{name} {value}" for name, value in special.items())
        alone = result.get("longest_alone_seconds")
        at_most = strength if alone is None else min(strength, one["result"]["seconds"] / alone)
        line = [f"{count}{', ' * bool(what)}{what}", cell["division"]]
        line += [figure(row, "tokens_per_second", ".0f"), ratio(row, one), f"{at_most:.2f}"]
        line += [f"{np.mean(seconds) / max(seconds):.3f}", figure(row, "prefix_sharing", ".4f")]
        body.append(line)
    head = ["engines", "fed", "tokens/s", "times one", "at most", "mean / longest time", "sharing"]
    return table(head, body)


def _gains(chunk: int | None) -> list[float]:
    """Gain over DFS at each point of the grid, per cent."""
    gains = []
    for sharing in SHARINGS:
        for density in DENSITIES:
            wanted: dict[str, Any] = {"workload": mix(density, sharing)}
            ours = best(rows("grid", policy="blendserve", **wanted))
            extra = {} if chunk is None else {"chunk": chunk}
            other = best(rows("grid", policy="dfs", **wanted, **extra))
            if ours is not None and other is not None:
                gains.append(100 * (rate(ours) / rate(other) - 1))
    return gains


def _grid() -> str:
    body = []
    for name, chunk in ((f"chunk {ENGINE_CHUNK}", ENGINE_CHUNK), ("chunk 512", 512),
                        ("the better of the two", None)):  # fmt: skip
        gains = _gains(chunk)
        if gains:
            shown = [f"{f(gains):+.1f} %" for f in (np.mean, min, np.median, max)]
            body.append([f"over DFS, {name}", str(len(gains)), *shown])
    body.append(["the paper's, simulated", "65", "+22.5 %", "+14 %", "-", "+34 %"])
    found = [best(rows("grid", policy="fcfs", workload=mix(d, s))) for s in SHARINGS
             for d in DENSITIES]  # fmt: skip
    ours = [best(rows("grid", policy="blendserve", workload=mix(d, s))) for s in SHARINGS
            for d in DENSITIES]  # fmt: skip
    over = [100 * (rate(o) / rate(f) - 1) for o, f in zip(ours, found, strict=True) if o and f]
    if over:
        shown = [f"{f(over):+.1f} %" for f in (np.mean, min, np.median, max)]
        body.append(["over fcfs (shuffled), chunk 512", str(len(over)), *shown])
    shares = [float(r["result"]["share_of_optimum"]) for r in ours if r]
    if shares:
        shown = [f"{f(shares):.3f}" for f in (np.mean, min, np.median, max)]
        body.append(["share of the bound", str(len(shares)), *shown])
    return table(["blendserve", "points", "mean", "least", "median", "most"], body)


def _paper() -> str:
    """The paper's figures and ours."""

    def main(policy: str, trace: str, chunk: int | None = None) -> Row | None:
        extra = {} if chunk is None else {"chunk": chunk}
        return best(rows("traces", policy=policy, workload=trace, engine="overlap", **extra))

    ours = [main("blendserve", t) for t in TRACES]
    dfs = [main("dfs", t, ENGINE_CHUNK) for t in TRACES]
    tuned = [main("dfs", t) for t in TRACES]
    lines: list[tuple[str, str, list[float], str]] = []

    def gains(over: list[Row | None]) -> list[float]:
        return [100 * (rate(o) / rate(d) - 1) for o, d in zip(ours, over, strict=True) if o and d]

    def shares(found: list[Row | None]) -> list[float]:
        return [100 * float(r["result"]["share_of_optimum"]) for r in found if r]

    lines.append(
        (f"gain over DFS, chunk {ENGINE_CHUNK}", "19.3 to 22.7, mean 20.8", gains(dfs), "")
    )
    lines.append(("gain over DFS, its best chunk", "", gains(tuned), ""))
    lines.append(("DFS, share of the bound", "mean 71.7", shares(dfs), ""))
    lines.append(("blendserve, share of the bound", "mean 86.6", shares(ours), ""))
    kept = [
        100 * o["result"]["prefix_sharing"] / d["result"]["prefix_sharing"]
        for o, d in zip(ours, dfs, strict=True)
        if o and d
    ]
    lines.append(("sharing, of DFS's", "over 97", kept, ""))
    gained = _gains(ENGINE_CHUNK)
    points = f"{len(gained)} of 65 mixes: gain over DFS"
    lines.append((points, "14 to 34, mean 22.5", gained, ""))
    varied = []
    for workload in VARIED.values():
        one = best(rows("variance", policy="blendserve", workload=workload))
        other = best(rows("variance", policy="dfs", workload=workload, chunk=ENGINE_CHUNK))
        if one and other:
            varied.append(100 * (rate(one) / rate(other) - 1))
    lines.append(("lengths that vary much: gain over DFS", "7 to 17", varied, ""))
    large = {"model": "Llama-3.1-70B"}
    one, other = (
        best(rows("models", policy="blendserve", **large)),
        best(rows("models", policy="dfs", chunk=ENGINE_CHUNK, **large)),
    )
    if one and other:
        lines.append(
            ("Llama 70B, TP 8: gain over DFS", "18.6", [100 * (ratio_of(one, other) - 1)], "")
        )
        lines.append(("Llama 70B, TP 8: share of the bound", "90.8", shares([one]), ""))
    lines += _replica_lines()
    body = [[name, theirs or "-", _range(values, unit)] for name, theirs, values, unit in lines]
    return table(["per cent, or times", "the paper", "here"], body)


def _replica_lines() -> list[tuple[str, str, list[float], str]]:
    """How many times as fast several replicas are: name, the paper's figure, ours, unit."""
    lines = []
    for count, theirs in ((2, "1.85 to 1.93"), (4, "3.78 to 3.88")):
        for size, one_size, division, what in (
            (EACH * count, EACH, ROUND_ROBIN, "a load of its own for each"),
            (MAIN, MAIN, ROUND_ROBIN, "one pool"),
            (MAIN, MAIN, SUB_TREES, "one pool, cut by sub-trees"),
        ):
            row = best(rows("ranks", replicas=count, requests=size, division=division))
            one = best(rows("ranks", replicas=1, requests=one_size))
            if row and one:
                name = f"{count} replicas, times one, {what}"
                lines.append((name, theirs, [ratio_of(row, one)], "x"))
    return lines


def ratio_of(row: Row, other: Row) -> float:
    """How many times as fast ``row`` is."""
    return rate(row) / rate(other)


def _range(values: list[float], unit: str) -> str:
    digits = 2 if unit else 1
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, high, mean = min(values), max(values), float(np.mean(values))
    return f"{low:.{digits}f} to {high:.{digits}f}, mean {mean:.{digits}f}"


STUDY_TABLES: dict[str, Callable[[], str]] = {
    "paper": _paper,
    "grid": _grid,
    "variance": _variance,
    "pool": _pool,
    "models": _models,
    "scale": _scale,
    "convergence": _convergence,
    "ranks": _ranks,
    "engines": _engines,
    "ablations": lambda: _options("ablations", ABLATIONS, "switched off"),
    "lengths": lambda: _options("lengths", LENGTHS, "output lengths"),
    "seeds": _seeds,
    "scanner": _scanner,
    "parts": _parts,
    "interference": _interference,
}
