"""Tables of the sweeps, for `tables`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, median

import numpy as np
from studies import (
    ABLATED,
    ABLATIONS,
    CANDIDATES,
    CHOOSING,
    CHOOSING_ON,
    COUNTS,
    DENSITIES,
    LENGTHS,
    MODELS,
    OTHERS,
    RELEASED,
    SEEDS,
    SHARINGS,
    SLOTS,
    VARIED,
    mix,
)

from tables import ENGINE_CHUNK, TRACES, Row, best, figure, rate, ratio, rows, share, spread, table

_PEERS: dict[str, Row] = {
    "dfs 512": {"policy": "dfs", "chunk": 512},
    f"dfs {ENGINE_CHUNK}": {"policy": "dfs", "chunk": ENGINE_CHUNK},
    "fcfs 512": {"policy": "fcfs", "chunk": 512},
    "fcfs at defaults": {"policy": "fcfs", "chunk": RELEASED[0]},
}
"""What the sweeps compare with."""


def _sweep(study: str, settings: dict[str, Row], head: str) -> str:
    """One line a setting: tokens/s and share of the bound, and what blendserve gains."""
    body = []
    for name, wanted in settings.items():
        ours = best(rows(study, policy="blendserve", **wanted))
        gains = [ratio(ours, best(rows(study, **peer, **wanted)), 3) for peer in _PEERS.values()]
        kept = [figure(ours, "prefix_sharing"), figure(ours, "retractions", "d")]
        body.append([name, figure(ours, "tokens_per_second", ",.0f"), share(ours), *gains, *kept])
    over = [f"over {name}" for name in _PEERS]
    return table([head, "tokens/s", "of the bound", *over, "sharing", "retractions"], body)


def _pool() -> str:
    sizes = {f"{slots:,}" if slots else "what fits": {"kv_slots": slots} for slots in SLOTS}
    return _sweep("pool", sizes, "KV cache, tokens")


def _models() -> str:
    names = {
        f"{model}, {f'{tp} x ' if tp > 1 else ''}{device}": {"model": model, "device": device}
        for model, device, tp in MODELS
    }
    return _sweep("models", names, "model, device")


def _changes(study: str, where: Row, options: dict[str, object]) -> list[float]:
    """By how much the policy is faster with other options, per cent, for each seed."""
    found = []
    for seed in (0, *SEEDS):
        usual, other = (
            best(rows(study, seed=seed, options=chosen, **where)) for chosen in ({}, dict(options))
        )
        if usual is not None and other is not None:
            found.append(100 * (rate(other) / rate(usual) - 1))
    return found


def _ablations() -> str:
    """What the absence of a part does to the speed, per cent: the median of the seeds, the least
    and the most."""
    body = []
    for name, options in ABLATIONS.items():
        changes = (_changes("ablations", where, options) for where in ABLATED.values())
        body.append([name, *(spread(found, "+.1f") for found in changes)])
    return table(["per cent", *ABLATED], body)


def _candidates() -> str:
    """What each candidate does to the speed, per cent, and what the best of them and ours would."""
    body = []
    for workload in CHOOSING:
        for device, engine in CHOOSING_ON:
            where = {"workload": workload, "device": device, "engine": engine}
            usual = best(rows("candidates", options={}, **where))
            found = [
                best(rows("candidates", options=dict(options), **where))
                for options in CANDIDATES.values()
            ]
            if usual is None or None in found:
                continue
            changes = [100 * (rate(row) / rate(usual) - 1) for row in found if row is not None]
            shown = [f"{change:+.1f}" for change in (*changes, max(0.0, *changes))]
            body.append([f"{workload}, {device} {engine}", *shown])
    return table(["per cent", *CANDIDATES, "the best at each"], body)


def _lengths() -> str:
    """Speed by what is known of output lengths, over what it is with a sample of 1 %."""
    body = []
    for name, options in LENGTHS.items():
        if options:
            changes = (_changes("lengths", {"workload": w}, options) for w in TRACES)
            body.append([name, *(spread(found, "+.1f") for found in changes)])
    return table(["per cent", *TRACES], body)


def _others() -> str:
    """How many times as fast blendserve is, over each peer's better chunk."""
    body = []
    for peer in (*OTHERS, "paper"):
        line = []
        for workload in TRACES:
            ours, other = (
                best(rows("others", policy=name, workload=workload))
                for name in ("blendserve", peer)
            )
            line.append(ratio(ours, other, 3))
        body.append(["the paper's scanner" if peer == "paper" else peer, *line])
    return table(["blendserve over", *TRACES], body)


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


def gain(study: str, peer: Row, wanted: Row) -> float | None:
    """By how much blendserve is faster than the best of the peers, per cent."""
    ours = best(rows(study, policy="blendserve", **wanted))
    found = rows(study, **peer, **wanted)
    other = best(row for row in found if row["cell"]["policy"] != "blendserve")
    return None if ours is None or other is None else 100 * (rate(ours) / rate(other) - 1)


def _grid() -> str:
    body = []
    mixes = [{"workload": mix(density, sharing)} for sharing in SHARINGS for density in DENSITIES]
    peers: dict[str, Row] = {**_PEERS, "the better dfs": {"policy": "dfs"}, "the best of these": {}}
    for name, peer in peers.items():
        found = [gain("grid", peer, wanted) for wanted in mixes]
        gains = [one for one in found if one is not None]
        if gains:
            shown = [f"{f(gains):+.1f} %" for f in (fmean, min, median, max)]
            body.append([f"over {name}", str(len(gains)), *shown])
    body.append(["the paper's, over DFS, simulated", "65", "+22.5 %", "+14 %", "-", "+34 %"])
    return table(["blendserve", "points", "mean", "least", "median", "most"], body)


STUDY_TABLES: dict[str, Callable[[], str]] = {
    "others": _others,
    "grid": _grid,
    "variance": lambda: _sweep(
        "variance", {n: {"workload": w} for n, w in VARIED.items()}, "long outputs"
    ),
    "pool": _pool,
    "models": _models,
    "scale": lambda: _sweep("scale", {f"1/{k}": {"scale": k} for k in (4, 8, 16)}, "replica"),
    "convergence": lambda: _sweep(
        "convergence", {f"{n:,}": {"requests": n} for n in COUNTS}, "requests"
    ),
    "engines": _engines,
    "ablations": _ablations,
    "candidates": _candidates,
    "lengths": _lengths,
}
