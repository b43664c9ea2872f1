"""Put the tables of docs/results.md together from ``benchmark/simulate/results``.

    python benchmark/simulate/tables.py
    python benchmark/simulate/tables.py validation "measured lanes"

Replaces what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` and leaves the rest; with
names, those tables alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cells import load

from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.recipe import Recipe
from sglang.srt.blendserve.simulator.step_cost import bound, sequential_bound

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "results.md"
TRACES = ("trace1", "trace2", "trace3", "trace4")
ENGINE_CHUNK = 2048
Row = dict[str, Any]


def rows(study: str, **wanted: Any) -> list[Row]:
    """Results of a study whose cells have these values."""
    return [
        row
        for row in load(study).values()
        if all(row["cell"][name] == value for name, value in wanted.items())
    ]


def best(found: Iterable[Row]) -> Row | None:
    """The fastest one, None of none."""
    return max(found, key=rate, default=None)


def rate(row: Row) -> float:
    """Tokens per second."""
    return float(row["result"]["tokens_per_second"])


def table(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(row: Row | None, name: str, shape: str = ".3f") -> str:
    """A figure of a result, a dash for none."""
    return "-" if row is None else format(row["result"][name], shape)


def share(row: Row | None) -> str:
    """Share of the bound."""
    return figure(row, "share_of_optimum")


def ratio(row: Row | None, other: Row | None, digits: int = 2) -> str:
    """How many times as fast ``row`` is."""
    return "-" if row is None or other is None else f"{rate(row) / rate(other):.{digits}f}"


def flags(row: Row | None) -> str:
    """Chunk size and conservativeness of a peer, in brackets."""
    if row is None or not row["cell"]["chunk"]:
        return ""
    return f" ({row['cell']['chunk']}, {row['cell']['conservativeness']:g})"


def peers(engine: str = "overlap") -> list[str]:
    """All policies of the main study but ours, in its order."""
    names = dict.fromkeys(row["cell"]["policy"] for row in rows("traces", engine=engine))
    return [name for name in names if name != "blendserve"]


def _traces(engine: str) -> str:
    """Shares of the bound, and ratios."""

    def find(policy: str, **more: Any) -> list[Row | None]:
        wanted = {"policy": policy, "engine": engine, **more}
        return [best(rows("traces", workload=w, **wanted)) for w in TRACES]

    ours, body = find("blendserve"), []
    for name in (*peers(engine), "blendserve"):
        found = find(name)
        body.append([name, *(share(r) + flags(r) for r in found)])
    at_2048 = find("dfs", chunk=ENGINE_CHUNK)
    body.insert(0, [f"dfs, chunk {ENGINE_CHUNK}", *map(share, at_2048)])
    others = {
        f"dfs, chunk {ENGINE_CHUNK}": at_2048,
        "dfs, best chunk": find("dfs"),
        "the best peer": [
            best(r for name in peers(engine) for r in rows("traces", policy=name, workload=w,
                                                           engine=engine))
            for w in TRACES
        ],
    }  # fmt: skip
    for name, against in others.items():
        pairs = zip(ours, against, strict=True)
        body.append([f"blendserve over {name}", *(ratio(o, a, 3) for o, a in pairs)])
    if engine == "sequential":
        most = [sequential_share(w) for w in TRACES]
        body.append(["the most that such an engine can reach", *(f"{m:.3f}" for m in most)])
    body.append(["blendserve: sharing", *(figure(r, "prefix_sharing", ".4f") for r in ours)])
    body.append(["optimal sharing", *(figure(r, "prefix_sharing_optimum", ".4f") for r in ours)])
    body.append(["blendserve: retractions", *(figure(r, "retractions", "d") for r in ours)])
    body.append(["blendserve: tokens/s", *(figure(r, "tokens_per_second", ".0f") for r in ours)])
    return table(["share of the bound (chunk, conservativeness)", *TRACES], body)


def sequential_share(trace: str) -> float:
    """The share of the bound that no policy can exceed without overlap."""
    machine = Machine.build("Llama-3.1-8B", "A100-80G", "sequential", scale=8)
    replica = Recipe.parse(trace).workload(400_000, 0).replica(machine.scale)
    least = bound(replica, machine.steps, machine.kv_slots).seconds
    return least / sequential_bound(replica, machine.steps)


_OTHERS = ("dfs", "fcfs", "lpt-ewma", "batchllm")


def _pairs() -> dict[tuple[str, int, int, str], dict[str, tuple[Row, Row]]]:
    """The same run by SGLang's scheduler and by the step model, by setting and policy."""
    found: dict[tuple[str, int, int, str], dict[str, tuple[Row, Row]]] = {}
    same = ("engine", "workload", "policy", "chunk", "conservativeness", "requests", "kv_slots")
    for real in rows("full", simulation="full"):
        cell = real["cell"]
        model = best(rows("full", simulation="fast", **{name: cell[name] for name in same}))
        if model is not None:
            setting = cell["engine"], cell["kv_slots"] or 0, cell["requests"], cell["workload"]
            found.setdefault(setting, {})[cell["policy"]] = (real, model)
    return dict(sorted(found.items()))


def _where(setting: tuple[str, int, int, str]) -> str:
    engine, slots, requests, workload = setting
    where = f"{workload}, {requests:,}"
    if slots:
        where += f", {slots:,} slots"
    return where + (f", {engine}" if engine != "overlap" else "")


def _full() -> str:
    """The two simulations beside each other."""
    body = []
    for setting, pairs in _pairs().items():
        for policy, (real, model) in sorted(pairs.items(), reverse=True):
            if policy not in ("blendserve", "dfs", "fcfs"):
                continue
            cells = [f"{rate(r):.0f}" for r in (real, model)]
            cells += [f"{100 * (rate(model) / rate(real) - 1):+.1f} %"]
            cells += [figure(r, "prefix_sharing", ".4f") for r in (real, model)]
            cells += [figure(r, "retractions", "d") for r in (real, model)]
            name = f"{_where(setting)}, {policy}{flags(real)}"
            body.append([name, *cells, figure(real, "scheduler_seconds", ".0f")])
    head = ["tokens/s; prefix sharing; retractions", "SGLang", "model", "apart", "SGLang", "model",
            "SGLang", "model", "SGLang took, s"]  # fmt: skip
    return table(head, body)


def _full_ratios() -> str:
    """What blendserve gains through SGLang's scheduler, and what the step model makes of that."""
    body = []
    for setting, pairs in _pairs().items():
        line = [_where(setting)]
        for policy in _OTHERS:
            if policy not in pairs or "blendserve" not in pairs:
                line.append("-")
                continue
            real, model = (rate(pairs["blendserve"][k]) / rate(pairs[policy][k]) for k in (0, 1))
            line.append(f"{real:.3f} ({100 * (model / real - 1):+.1f} %)")
        body.append(line)
    return table(["blendserve over", *_OTHERS], body)


TABLES: dict[str, Callable[[], str]] = {
    "traces overlap": lambda: _traces("overlap"),
    "traces sequential": lambda: _traces("sequential"),
    "full": _full,
    "full ratios": _full_ratios,
}


def main() -> None:
    """Renew the tables in the document."""
    from measured_tables import MEASURED_TABLES
    from study_tables import STUDY_TABLES

    tables = TABLES | STUDY_TABLES | MEASURED_TABLES

    wanted = set(sys.argv[1:]) or set(tables)
    if unknown := wanted - set(tables):
        sys.exit(f"tables: {', '.join(unknown)} not among {', '.join(tables)}")

    def renewed(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in wanted:
            return match.group(0)
        return f"<!-- table {name} -->\n{tables[name]()}\n<!-- end -->"

    text = DOCUMENT.read_text(encoding="utf-8")
    pattern = r"<!-- table ([a-z ]+) -->.*?<!-- end -->"
    DOCUMENT.write_text(re.sub(pattern, renewed, text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
