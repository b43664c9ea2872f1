"""Run a study of the simulator, or continue one.

    python benchmark/simulate/studies.py convergence
    python benchmark/simulate/studies.py all

Results go to ``benchmark/simulate/results/STUDY.jsonl``; cells that are there are not run again.
``python benchmark/simulate/tables.py`` makes the tables and figures of docs/ from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cells import Cell, run

TRACES = ("trace1", "trace2", "trace3", "trace4")


def convergence() -> list[Cell]:
    """How many requests it takes until the result stops moving."""
    return [
        cell
        for requests in (50_000, 100_000, 200_000, 400_000, 800_000)
        for cell in (
            Cell("dfs", requests=requests, chunk=512),
            Cell("dfs", requests=requests, chunk=2048),
            Cell("blendserve", requests=requests),
        )
    ]


ENGINES = ("overlap", "sequential")
PEER_CHUNKS = {
    "dfs": (256, 512, 1024, 2048, 8192),
    "fcfs": (256, 512, 1024, 2048, 8192),
    "random": (512, 2048),
    "lof": (512, 2048),
    "dfs-weight": (512, 2048),
    "lpt-ewma": (512, 2048),
    "batchllm": (512, 2048),
}


def peers() -> list[Cell]:
    """The four traces x peers x engines, each at several chunk sizes."""
    return [
        Cell(policy, workload, engine=engine, chunk=chunk)
        for engine in ENGINES
        for workload in TRACES
        for policy, chunks in PEER_CHUNKS.items()
        for chunk in chunks
    ]


def traces() -> list[Cell]:
    """The four traces under our policy, the strongest peers and the paper's scanner."""
    return [
        Cell(policy, workload, requests=200_000, engine=engine, chunk=chunk)
        for policy, chunk, engines in (
            ("blendserve", 0, ("overlap",)),
            ("dfs", 512, ENGINES),
            ("dfs", 2048, ENGINES),
            ("fcfs", 256, ENGINES),
            ("fcfs", 512, ENGINES),
            ("blendserve", 0, ("sequential",)),
            ("paper", 0, ("overlap",)),
        )
        for engine in engines
        for workload in TRACES
    ]


STUDIES: dict[str, Callable[[], list[Cell]]] = {
    "convergence": convergence,
    "peers": peers,
    "traces": traces,
}


def main() -> None:
    """Run the studies that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="+", choices=[*STUDIES, "all"])
    names = parser.parse_args().study
    for name in STUDIES if "all" in names else names:
        run(name, STUDIES[name]())


if __name__ == "__main__":
    main()
