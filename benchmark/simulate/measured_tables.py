"""Tables of the studies at measured kernel times, for `tables`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import matrix
from cells import load
from studies import (
    MEASURED_ENGINES,
    RELEASED,
    SEEDS,
    USERS,
    WINDOWS,
)

from tables import ENGINE_CHUNK, TRACES, Row, best, figure, rate, rows, spread, table

PAPER_RATES = dict(zip(TRACES, (11_080, 8_408, 8_403, 6_325), strict=True))
"""Tokens/s that the paper measured, Llama-3-8B on an A100."""

PAPER_GAIN = 1.2084
"""The mean of the paper's gains over DFS on these traces (1.193 to 1.227)."""

ALL_SEEDS = (0, *SEEDS)
_SETTINGS: dict[str, dict[str, Any]] = {
    "dfs, chunk 2048": {"policy": "dfs", "chunk": ENGINE_CHUNK},
    "dfs, SGLang's defaults": {"policy": "dfs", "chunk": RELEASED[0]},
    "fcfs (shuffled), chunk 512": {"policy": "fcfs", "chunk": 512},
    "fcfs (shuffled), SGLang's defaults": {"policy": "fcfs", "chunk": RELEASED[0]},
    "another shuffle, chunk 512": {"policy": "random"},
}
"""What blendserve is compared with."""


def _each(wanted: dict[str, Any], seeds: tuple[int, ...], study: str = "measured") -> list[Row]:
    found = (best(rows(study, seed=seed, **wanted)) for seed in seeds)
    return [row for row in found if row is not None]


def _gains(ours: dict[str, Any], theirs: dict[str, Any], study: str = "measured") -> list[float]:
    """How many times as fast the one is as the other, for each seed of both."""
    pairs = ((_each(ours, (s,), study), _each(theirs, (s,), study)) for s in ALL_SEEDS)
    return [rate(a[0]) / rate(b[0]) for a, b in pairs if a and b]


def _validation() -> str:
    """The paper's measured throughputs and ratios, and ours on the same GPU's kernel times."""
    body = []
    for engine in ("nanoflow", "lanes"):
        for trace in TRACES:
            where = {"engine": engine, "workload": trace}
            ours, dfs = {"policy": "blendserve", **where}, {**_SETTINGS["dfs, chunk 2048"], **where}
            found, beside = ([rate(row) for row in _each(one, ALL_SEEDS)] for one in (ours, dfs))
            if not found:
                continue
            paper = PAPER_RATES[trace]
            over = _gains(ours, {**_SETTINGS["another shuffle, chunk 512"], **where})
            body.append(
                [f"{engine}, {trace}", f"{paper / PAPER_GAIN:,.0f}", spread(beside, ",.0f"),
                 f"{median(beside) * PAPER_GAIN / paper - 1:+.1%}", f"{paper:,}",
                 spread(found, ",.0f"), f"{median(found) / paper - 1:+.1%}",
                 spread(_gains(ours, dfs), ".3f"), spread(over, ".3f")]
            )  # fmt: skip
    head = ["engine, trace", "DFS in the paper (derived)", "here", "apart",
            "BlendServe in the paper", "here", "apart", "over dfs, chunk 2048",
            "over a random order"]  # fmt: skip
    return table(head, body)


def _engine(engine: str, device: str = "A100-80G", study: str = "measured") -> str:
    """One engine: tokens/s of blendserve and what it gains over each peer."""
    where = {"engine": engine, "device": device}
    body = []
    line = []
    for trace in TRACES:
        ours = {"policy": "blendserve", "workload": trace, **where}
        line.append(spread([rate(row) for row in _each(ours, ALL_SEEDS, study)], ",.0f"))
    body.append(["blendserve, tokens/s", *line])
    for name, wanted in _SETTINGS.items():
        line = []
        for trace in TRACES:
            same = {"workload": trace, **where}
            gains = _gains({"policy": "blendserve", **same}, {**same, **wanted}, study)
            line.append(spread(gains, ".3f"))
        if any(cell != "-" for cell in line):
            body.append([f"blendserve over {name}", *line])
    return table([f"{engine}, {device}", *TRACES], body)


def _users(engine: str) -> str:
    """One line a workload and order of the file."""
    body = []
    for workload, order in USERS:
        where = {"engine": engine, "workload": workload, "order": order}

        def one(where: dict[str, Any] = where, **more: Any) -> Row | None:
            return best(rows("users", **where, **more))

        ours = one(policy="blendserve")
        released = RELEASED[0]
        peers = [one(policy="fcfs"), one(policy="fcfs", chunk=released), one(policy="dfs")]
        over = [
            "-" if ours is None or peer is None else f"{rate(ours) / rate(peer):.2f}"
            for peer in peers
        ]
        shares = [figure(row, "prefix_sharing") for row in (ours, peers[0], peers[2])]
        most = figure(ours, "prefix_sharing_optimum")
        speed = figure(ours, "tokens_per_second", ",.0f")
        body.append([f"{workload}, {order}", speed, *over, *shares, most])
    head = [engine, "blendserve, tokens/s", "over fcfs", "over fcfs at defaults", "over dfs",
            "sharing", "fcfs", "dfs", "at most"]  # fmt: skip
    return table(head, body)


def _name(options: dict[str, Any]) -> str:
    return str(sorted(options.items()))


def _windows() -> str:
    """What a window before the engine costs against all requests in it, with a plan ahead of it
    and in the order of the file."""
    settings: list[dict[str, Any]] = [{"window": 0}, *({"window": w} for w in WINDOWS[1:])]
    settings.append({"window": WINDOWS[-1], "plan_ahead": False})
    found: dict[tuple[Any, ...], dict[int, dict[str, float]]] = {}
    for row in rows("windows"):
        cell = row["cell"]
        options = dict(cell["options"])
        order = cell["order"] + (" over time" if options.pop("known_ahead", None) else "")
        order += ", SGLang's scheduler" if cell["simulation"] == "full" else ""
        key = cell["workload"], cell["engine"], order, cell["requests"]
        of_seed = found.setdefault(key, {}).setdefault(cell["seed"], {})
        of_seed[_name(options)] = rate(row)
    body = []
    for (workload, engine, order, requests), seeds in found.items():
        everything = [rates[_name(settings[0])] for rates in seeds.values()]
        line = [f"{workload}, {engine}, {order}, {requests:,}", spread(everything, ",.0f")]
        for setting in settings[1:]:
            shares = [
                rates[_name(setting)] / rates[_name(settings[0])]
                for rates in seeds.values()
                if _name(setting) in rates
            ]
            line.append(spread(shares, ".3f"))
        body.append(line)
    head = ["", "all in the engine, tokens/s", *(f"window of {w:,}" for w in WINDOWS[1:])]
    return table([*head, f"{WINDOWS[-1]:,} in the file's order"], body)


def _matrix(*, over_defaults: bool) -> str:
    """One line a workload and order of the file: blendserve over the best peer, or over fcfs at
    SGLang's default flags, on each machine."""
    done = load("matrix")
    body = []
    for workload, requests in matrix.WORKLOADS.items():
        for order in matrix.orders(workload):
            line = [f"{workload}, {order}, {requests:,}"]
            for machine in matrix.MACHINES:
                place = matrix.Place(workload, *machine)
                gains = [place.gain(seed, order, done, over_defaults) for seed in matrix.SCORED_ON]
                line.append(spread([gain for gain in gains if gain is not None], ".3f"))
            body.append(line)
    names = (f"{device.split('-')[0]}, {engine}" for device, engine in matrix.MACHINES)
    return table(["", *names], body)


MEASURED_TABLES: dict[str, Callable[[], str]] = {
    "validation": _validation,
    **{f"measured {engine}": lambda e=engine: _engine(e) for engine in MEASURED_ENGINES},
    "hopper lanes": lambda: "\n\n".join(_engine("lanes", d, "hopper") for d in ("H100", "H200")),
    "hopper sequential": lambda: _engine("sequential", "H200", "hopper"),
    "matrix": lambda: _matrix(over_defaults=False),
    "matrix defaults": lambda: _matrix(over_defaults=True),
    "windows": _windows,
    "users lanes": lambda: _users("lanes"),
    "users sequential": lambda: _users("sequential"),
}
