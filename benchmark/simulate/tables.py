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
from statistics import median
from typing import Any

from cells import load

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "results.md"
TRACES = ("trace1", "trace2", "trace3", "trace4")
ENGINE_CHUNK = 2048
Row = dict[str, Any]


PATTERN = r"<!-- table ([a-z ]+) -->.*?<!-- end -->"


def named_in(text: str) -> list[str]:
    """Return the names of the tables that a document has."""
    return [match.group(1) for match in re.finditer(PATTERN, text, flags=re.S)]


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


def spread(values: list[float], form: str) -> str:
    """The median, and the least and the most in brackets."""
    if not values:
        return "-"
    if len(values) == 1:
        return format(values[0], form)
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _full() -> str:
    """The same runs by SGLang's scheduler and by the step model."""
    body = []
    for row in rows("full"):
        cell = row["cell"]
        model = best(rows("matrix", **{name: cell[name] for name in _SAME}))
        flags = f" ({cell['chunk']}, {cell['conservativeness']:g})" if cell["chunk"] else ""
        where = ", ".join((cell["workload"], cell["order"], cell["device"], cell["engine"]))
        line = [f"{where}, {cell['policy']}{flags}"]
        line += [figure(one, "tokens_per_second", ",.0f") for one in (row, model)]
        line.append("-" if model is None else f"{100 * (rate(model) / rate(row) - 1):+.1f} %")
        line += [figure(one, "prefix_sharing", ".4f") for one in (row, model)]
        line += [figure(one, "retractions", "d") for one in (row, model)]
        body.append([*line, figure(row, "scheduler_seconds", ".0f")])
    head = ["tokens/s; prefix sharing; retractions", "SGLang", "model", "apart", "SGLang", "model",
            "SGLang", "model", "SGLang took, s"]  # fmt: skip
    return table(head, body)


_SAME = ("workload", "order", "device", "engine", "policy", "seed", "chunk", "conservativeness")
"""What a run has in common with itself in the other simulation."""

TABLES: dict[str, Callable[[], str]] = {"full": _full}


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
    if unknown := set(named_in(text)) - set(tables):
        sys.exit(f"tables: {DOCUMENT.name} has {', '.join(unknown)}, which nobody makes")
    DOCUMENT.write_text(re.sub(PATTERN, renewed, text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
