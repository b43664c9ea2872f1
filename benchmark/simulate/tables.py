"""Put the tables of docs/results.md together from ``benchmark/simulate/results``.

    python benchmark/simulate/tables.py

Replaces what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` and leaves the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cells import load

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "results.md"
TRACES = ("trace1", "trace2", "trace3", "trace4")
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
    return max(found, key=lambda row: row["result"]["tokens_per_second"], default=None)


def table(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(row: Row | None) -> str:
    return "-" if row is None else f"{row['result']['share_of_optimum']:.3f}"


def _ratio(row: Row | None, other: Row | None) -> str:
    if row is None or other is None:
        return "-"
    return f"{row['result']['tokens_per_second'] / other['result']['tokens_per_second']:.2f}"


def _traces(engine: str) -> str:
    """Shares of the bound and ratios, all with the same number of requests."""
    lines: dict[str, Callable[[str], Row | None]] = {
        "dfs, chunk 2048": lambda w: best(_of("dfs", w, engine, 2048)),
        "dfs, best chunk": lambda w: best(_of("dfs", w, engine)),
        "fcfs (shuffled), best chunk": lambda w: best(_of("fcfs", w, engine)),
        "paper": lambda w: best(_of("paper", w, engine)),
        "blendserve": lambda w: best(_of("blendserve", w, engine)),
    }
    body = [[name, *(_share(find(w)) for w in TRACES)] for name, find in lines.items()]
    ours = lines["blendserve"]
    for name in ("dfs, chunk 2048", "dfs, best chunk", "fcfs (shuffled), best chunk"):
        ratios = [_ratio(ours(w), lines[name](w)) for w in TRACES]
        body.append([f"blendserve over {name}", *ratios])
    for name in ("prefix_sharing", "prefix_sharing_optimum"):
        values = [ours(w) for w in TRACES]
        shown = ["-" if r is None else f"{r['result'][name]:.4f}" for r in values]
        body.append([f"blendserve: {name.replace('_', ' ')}", *shown])
    shown = ["-" if r is None else str(r["result"]["retractions"]) for r in map(ours, TRACES)]
    body.append(["blendserve: retractions", *shown])
    return table(["share of the bound", *TRACES], body)


def _of(policy: str, workload: str, engine: str, chunk: int | None = None) -> list[Row]:
    wanted: Row = {"policy": policy, "workload": workload, "engine": engine}
    if chunk is not None:
        wanted["chunk"] = chunk
    return rows("traces", **wanted)


def _peers(engine: str) -> str:
    names = list(dict.fromkeys(row["cell"]["policy"] for row in rows("peers")))
    body = []
    for name in names:
        found = [best(rows("peers", policy=name, workload=w, engine=engine)) for w in TRACES]
        cells = [f"{_share(r)} ({r['cell']['chunk']})" if r else "-" for r in found]
        body.append([name, *cells])
    return table(["share of the bound (chunk)", *TRACES], body)


def _convergence() -> str:
    counts = sorted({row["cell"]["requests"] for row in rows("convergence")})
    body = []
    for policy, chunk in (("dfs", 512), ("dfs", 2048), ("blendserve", 0)):
        found = [
            best(rows("convergence", policy=policy, chunk=chunk, requests=count))
            for count in counts
        ]
        body.append([f"{policy} {chunk or ''}".strip(), *map(_share, found)])
    return table(["share of the bound", *(f"{count:,}" for count in counts)], body)


def _study(name: str) -> str:
    """Any other study: one line a cell, with what sets it apart."""
    found = list(load(name).values())
    fields = [f for f in found[0]["cell"] if len({str(r["cell"][f]) for r in found}) > 1]
    body = []
    for row in found:
        result = row["result"]
        what = ", ".join(f"{f} {row['cell'][f]}" for f in fields if row["cell"][f] not in (0, {}))
        body.append(
            [
                what or "all on",
                f"{result['tokens_per_second']:.0f}",
                f"{result['share_of_optimum']:.3f}",
                f"{result['prefix_sharing']:.3f}",
                f"{result['kv_occupancy']:.2f}",
                str(result["retractions"]),
            ]
        )
    head = ["cell", "tokens/s", "share of the bound", "sharing", "KV full", "retractions"]
    return table(head, body)


TABLES: dict[str, Callable[[], str]] = {
    "traces overlap": lambda: _traces("overlap"),
    "traces sequential": lambda: _traces("sequential"),
    "peers overlap": lambda: _peers("overlap"),
    "peers sequential": lambda: _peers("sequential"),
    "convergence": _convergence,
}


def main() -> None:
    """Renew all tables in the document."""

    def renewed(match: re.Match[str]) -> str:
        name = match.group(1)
        made = TABLES[name]() if name in TABLES else _study(name)
        return f"<!-- table {name} -->\n{made}\n<!-- end -->"

    text = DOCUMENT.read_text(encoding="utf-8")
    pattern = r"<!-- table ([a-z ]+) -->.*?<!-- end -->"
    DOCUMENT.write_text(re.sub(pattern, renewed, text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
