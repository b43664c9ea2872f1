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
import random
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
        found = self._results(seed, order, done)
        if found is None:
            return None
        ours, *peers = (result["tokens_per_second"] for result in found)
        return float(ours / (peers[0] if over_defaults else max(peers)))

    def median_gain(self, order: str, done: dict[str, Any]) -> float:
        """Return the median of `gain` over the seeds that were run; 0 without any."""
        found = (self.gain(seed, order, done) for seed in SCORED_ON)
        return median([gain for gain in found if gain is not None] or [0.0])

    def of_what_is_left(self, seed: int, order: str, done: dict[str, Any]) -> float | None:
        """Return which part of the gain that the bound leaves over the best peer ours has; None:
        not all have been run. The bound knows of no beginning and no end of a run, at which memory
        is not full, so no policy has all of it."""
        found = self._results(seed, order, done)
        if found is None:
            return None
        ours, *peers = (result["share_of_optimum"] for result in found)
        return float((ours - max(peers)) / (1 - max(peers)))

    def _results(self, seed: int, order: str, done: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Ours, fcfs at default flags, and the other peers."""
        if any(cell.key() not in done for cell in self.tuning()):
            return None
        cells = self.scored(seed, order, done)
        if any(cell.key() not in done for cell in cells):
            return None
        return [done[cell.key()]["result"] for cell in cells]


def places(device: str | None = None) -> Iterator[Place]:
    """All workloads on all machines, or on those of one device."""
    for workload in WORKLOADS:
        for name, engine in MACHINES:
            if device in (None, name):
                yield Place(workload, name, engine)


def orders(workload: str) -> tuple[str, ...]:
    """The orders of a file that differ for this workload."""
    return ("shuffled",) if workload in ONE_ORDER else ("shuffled", "sorted")


AGREEMENT = 12
"""Runs that are made through SGLang's scheduler, too."""
ENOUGH = 0.995
"""A median that is no loss to the best peer."""


def summary() -> str:
    """How many places are no loss to the best peer, which are, and what default flags give away.

    Medians of the seeds that were run.
    """
    done = load("matrix")
    gains: dict[str, float] = {}
    over_defaults = []
    left: dict[str, list[float]] = {}
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
            parts = (place.of_what_is_left(seed, order, done) for seed in SCORED_ON)
            of_engine = left.setdefault(place.engine, [])
            of_engine.append(median(part for part in parts if part is not None))
    losses = sorted((gain, name) for name, gain in gains.items() if gain < ENOUGH)
    lines = [f"{gain:.3f}  {name}" for gain, name in losses]
    return "\n".join(
        [
            f"{len(gains)} places, {whole} of them with all seeds; {len(gains) - len(losses)} at "
            f"{ENOUGH} of the best peer or more; mean {mean(gains.values()):.3f}; over fcfs at "
            f"default flags {mean(over_defaults):.3f} in the mean, {min(over_defaults):.3f} to "
            f"{max(over_defaults):.3f}",
            *lines,
            *(
                f"{engine}: {median(parts):.2f} of what the bound leaves over the best peer "
                f"({min(parts):.2f} to {max(parts):.2f})"
                for engine, parts in left.items()
            ),
        ]
    )


def agreement() -> list[Cell]:
    """Return runs of the first seed drawn by a seed, a third of them ours, to be made through
    SGLang's scheduler as well. Those of a place whose peers' flags are not chosen are not drawn."""
    done = load("matrix")
    tuned = [place for place in places() if all(cell.key() in done for cell in place.tuning())]
    cells = [
        cell
        for place in tuned
        for order in orders(place.workload)
        for cell in place.scored(SCORED_ON[0], order, done)
        if cell.policy in ("blendserve", *PEERS)
    ]
    draw = random.Random(AGREEMENT)
    ours = [cell for cell in cells if cell.policy == "blendserve"]
    others = [cell for cell in cells if cell.policy != "blendserve"]
    drawn = draw.sample(ours, AGREEMENT // 3) + draw.sample(others, AGREEMENT - AGREEMENT // 3)
    return [replace(cell, simulation="full") for cell in drawn]


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
    parser.add_argument(
        "--below", type=float, metavar="GAIN", help="where the median gain so far is less"
    )
    parser.add_argument(
        "--full", action="store_true", help="runs through SGLang's scheduler, drawn by a seed"
    )
    parser.add_argument("--summary", action="store_true", help="run nothing, sum up")
    args = parser.parse_args()
    if args.summary:
        print(summary())
        return
    if args.full:
        run("full", agreement(), args.minutes)
        return
    wanted = [p for p in places(args.device) if args.workload in (None, p.workload)]
    for seed in args.seeds:
        for place in wanted:
            run("matrix", place.tuning(), args.minutes)
            done = load("matrix")
            if all(cell.key() in done for cell in place.tuning()):
                for order in orders(place.workload):
                    if args.below is None or place.median_gain(order, done) < args.below:
                        run("matrix", place.scored(seed, order, done), args.minutes)


if __name__ == "__main__":
    main()
