"""The policy as it is on twelve workloads, seven machines and both orders of a file.

    python benchmark/simulate/matrix.py
    python benchmark/simulate/matrix.py --device H100 --minutes 30

Peers' flags are chosen for each workload, engine and device on one seed, of the file as it is
drawn, and scored on others, in both orders of the file. Of fcfs and of depth-first order the
better counts, and beside a sorted file a shuffle of it, too. The first four workloads are those on
which constants were once set. Results go to
``benchmark/simulate/results/matrix.jsonl``; cells that are there are not run again, so several
processes may share it by ``--device``. ``tables.py matrix`` makes the tables of docs/results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from statistics import mean, median
from typing import Any, NamedTuple

from cells import Cell, load, run
from studies import RELEASED

CHOSEN_ON, SCORED_ON = 0, (1, 2, 3)
"""Seeds: the one on which the peers' flags are chosen, and those that count."""

LARGE = 100_000
WORKLOADS = {
    "trace1": LARGE,
    "trace2": LARGE,
    "trace3": LARGE,
    "trace4": LARGE,
    "azure_code": LARGE,
    "azure_conv": LARGE,
    "burstgpt": LARGE,
    "sharegpt": LARGE,
    "sharegpt+azure_code+mmlu": LARGE,
    "documents": LARGE,
    "reasoning": 10_000,
    "burstgpt+reasoning": 20_000,
}
"""Requests of each; fewer where each has thousands of output tokens."""
ONE_ORDER = ("azure_code", "azure_conv", "burstgpt", "sharegpt", "reasoning")
"""Workloads of one source without prefixes, which sorting leaves as they are."""

MACHINES = (
    ("A100-80G", "sequential"),
    ("A100-80G", "lanes"),
    ("A100-80G", "nanoflow"),
    ("H100", "sequential"),
    ("H100", "lanes"),
    ("H200", "sequential"),
    ("H200", "lanes"),
)
FLAGS = ((512, 0.1), (2048, 0.1), RELEASED)
"""Chunk and conservativeness among which the peers' are chosen."""
PEERS = ("fcfs", "dfs")


class Place(NamedTuple):
    """A workload on a machine."""

    workload: str
    device: str
    engine: str

    def cell(self, policy: str, seed: int, order: str, flags: tuple[int, float] = (0, 1.0)) -> Cell:
        """Return a run here."""
        return Cell(
            policy,
            self.workload,
            WORKLOADS[self.workload],
            seed,
            *flags,
            device=self.device,
            engine=self.engine,
            order=order,
        )

    def tuning(self) -> list[Cell]:
        """Return the runs among which the peers' flags are chosen."""
        return [self.cell(p, CHOSEN_ON, "shuffled", flags) for p in PEERS for flags in FLAGS]

    def scored(self, seed: int, order: str, done: dict[str, Any]) -> list[Cell]:
        """Return the runs of one seed and order that count, ours first. Their flags are the best
        of `tuning`, which ``done`` has: results of cells by key."""
        cells = [self.cell("blendserve", seed, order), self.cell("fcfs", seed, order, RELEASED)]
        for peer in PEERS:
            tried = [cell for cell in self.tuning() if cell.policy == peer]
            fastest = max(tried, key=lambda c: done[c.key()]["result"]["tokens_per_second"])
            cells.append(replace(fastest, seed=seed, order=order))
            if peer == "fcfs" and order == "sorted":
                cells.append(replace(cells[-1], policy="random"))
        return list({cell.key(): cell for cell in cells}.values())

    def gain(
        self, seed: int, order: str, done: dict[str, Any], over_defaults: bool = False
    ) -> float | None:
        """Return how many times as fast ours is as the best peer, or as fcfs at SGLang's default
        flags; None: not all have been run."""
        if any(cell.key() not in done for cell in self.tuning()):
            return None
        cells = self.scored(seed, order, done)
        if any(cell.key() not in done for cell in cells):
            return None
        ours, released, *others = (
            done[cell.key()]["result"]["tokens_per_second"] for cell in cells
        )
        return float(ours / (released if over_defaults else max(released, *others)))


def places(device: str | None = None) -> Iterator[Place]:
    """All workloads on all machines, or on those of one device."""
    for workload in WORKLOADS:
        for name, engine in MACHINES:
            if device in (None, name):
                yield Place(workload, name, engine)


def orders(workload: str) -> tuple[str, ...]:
    """The orders of a file that differ for this workload."""
    return ("shuffled",) if workload in ONE_ORDER else ("shuffled", "sorted")


ENOUGH = 0.995
"""A median that is no loss to the best peer."""


def summary() -> str:
    """How many places are no loss to the best peer, which are, and what default flags give away.

    Medians of the seeds that were run.
    """
    done = load("matrix")
    gains: dict[str, float] = {}
    over_defaults = []
    whole = 0
    for place in places():
        for order in orders(place.workload):
            found = [place.gain(seed, order, done) for seed in SCORED_ON]
            medians = [gain for gain in found if gain is not None]
            if not medians:
                continue
            whole += len(medians) == len(SCORED_ON)
            gains[", ".join((*place, order))] = median(medians)
            released = (place.gain(seed, order, done, over_defaults=True) for seed in SCORED_ON)
            over_defaults.append(median(gain for gain in released if gain is not None))
    losses = sorted((gain, name) for name, gain in gains.items() if gain < ENOUGH)
    lines = [f"{gain:.3f}  {name}" for gain, name in losses]
    return "\n".join(
        [
            f"{len(gains)} places, {whole} of them with all seeds; {len(gains) - len(losses)} at "
            f"{ENOUGH} of the best peer or more; mean {mean(gains.values()):.3f}; over fcfs at "
            f"default flags {mean(over_defaults):.3f} in the mean, {min(over_defaults):.3f} to "
            f"{max(over_defaults):.3f}",
            *lines,
        ]
    )


def main() -> None:
    """Run what has no result yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=sorted({name for name, _ in MACHINES}))
    parser.add_argument("--minutes", type=float, help="begin no cell after so long")
    parser.add_argument("--workload", choices=WORKLOADS, help="this one alone")
    parser.add_argument(
        "--seeds", type=int, nargs="+", choices=SCORED_ON, default=SCORED_ON, metavar="SEED"
    )
    parser.add_argument("--summary", action="store_true", help="run nothing, sum up")
    args = parser.parse_args()
    if args.summary:
        print(summary())
        return
    wanted = [p for p in places(args.device) if args.workload in (None, p.workload)]
    for seed in args.seeds:
        for place in wanted:
            run("matrix", place.tuning(), args.minutes)
            done = load("matrix")
            if all(cell.key() in done for cell in place.tuning()):
                for order in orders(place.workload):
                    run("matrix", place.scored(seed, order, done), args.minutes)


if __name__ == "__main__":
    main()
