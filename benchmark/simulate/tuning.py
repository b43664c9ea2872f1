"""What each constant of the step policy is worth, by the fast step model.

    python benchmark/simulate/tuning.py                    run what is missing, print the table
    python benchmark/simulate/tuning.py bias many_caps     of these fields only
    python benchmark/simulate/tuning.py --table            print what is there, run nothing

For each field of `Tuning` the model runs two traces with the field at another value (switched off,
halved or doubled: see VARIANTS) and everything else at its default, and once with all defaults. The
table shows the change of the run's time in per cent, the mean over seeds and traces with the least
and the most: plus means that the run takes longer with the other value, so the default is worth it.
A range with both signs says that seeds differ by more than the field is worth.

Two ways of making the runs cheaper do not work. With a small KV cache the loading of weights is so
large a part of the memory traffic that compute is never scarce, and the fields for that case show
nothing. With 10,000 requests the longest outputs are half the run, and when they happen to start
moves it by 10 % and more. With 25,000 requests and the whole cache the memory hardly fills, so the
fields of split, admission and margin show nothing (`reserve_all` 0.2 %, with 100,000 requests 8 %).
Hence 100,000: half a minute a run of one core, more than an hour in all. Fewer do for the pace.

Results go to ``benchmark/simulate/results/tuning.jsonl``, one a line. A run that is there is not
repeated, so an interrupted study continues where it stopped, and several processes may share it
(each with seeds of its own). After a change of the policy, delete the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import cells
from cells import Cell
from tqdm import tqdm

from sglang.srt.blendserve.policy.tuning import Tuning

STUDY = "tuning"
TRACES, ENGINES = ("trace1", "trace4"), ("lanes", "sequential")

VARIANTS: dict[str, Any] = {
    "look_ahead": 16,
    "backfill": 0,
    "worth_waiting": 10**9,
    "split_steps": 1,
    "side_window": 64,
    "side_part": 2,
    "least_share": 0.0,
    "apart": 1.0,
    "most_share": 1.0,
    "scarce_share": 0.0,
    "scarce_from": 0.6,
    "scarce_width": 0.6,
    "outlived": 1e9,
    "reserve_all": True,
    "earned": 1e9,
    "least_risk": 0.16,
    "more_deviations": 0.0,
    "many": 128,
    "alike": 0.0,
    "bias": 0.0,
    "many_caps": 1e9,
    "prompt_cost_kept": 0.0,
}
"""The other value of each field. `worth_waiting`: nobody waits for a prefix. `outlived`: nobody is
moved. `many_caps`: unknown kinds never count with their caps."""

ELSEWHERE = {
    "backfill_known": "concerns requests of known length",
    "paper_window": "concerns `paper` alone",
}
"""Fields that these runs do not show."""


class Change(NamedTuple):
    """How the runs of one engine change with a field at its other value."""

    seconds: list[float]
    """Per cent, one a run."""
    retractions: int
    """In all runs, less those with the default."""


def cell(args: argparse.Namespace, field: str, trace: str, engine: str, seed: int) -> Cell:
    """One run with ``field`` at its other value, or all defaults where it is empty."""
    return Cell(
        "blendserve",
        trace,
        args.requests,
        seed=seed,
        engine=engine,
        options={field: VARIANTS[field]} if field else {},
    )


def all_cells(args: argparse.Namespace) -> Iterator[Cell]:
    """All runs, those of one workload together, the defaults first."""
    for engine in args.engines:
        for trace in TRACES:
            for seed in args.seeds:
                for field in ("", *args.fields):
                    yield cell(args, field, trace, engine, seed)


def run(args: argparse.Namespace) -> None:
    """Run what is not in the file yet, and write each result as it is there."""
    done = cells.load(STUDY)
    missing = [one for one in all_cells(args) if one.key() not in done]
    for one in (bar := tqdm(missing, unit="run", disable=None)):
        bar.set_postfix_str(f"{one.workload} {one.engine} {one.seed} {[*one.options] or ''}")
        cells.append(STUDY, {"cell": asdict(one), "result": cells.play(one)})


def changes(args: argparse.Namespace) -> dict[tuple[str, str], Change]:
    """By field and engine, of the runs that are in the file."""
    done = {key: row["result"] for key, row in cells.load(STUDY).items()}
    found = {}
    for field in args.fields:
        for engine in args.engines:
            pairs = []
            for trace in TRACES:
                for seed in args.seeds:
                    other = done.get(cell(args, field, trace, engine, seed).key())
                    usual = done.get(cell(args, "", trace, engine, seed).key())
                    if other is not None and usual is not None:
                        pairs.append((other, usual))
            if pairs:
                found[field, engine] = Change(
                    [100 * (other["seconds"] / usual["seconds"] - 1) for other, usual in pairs],
                    sum(other["retractions"] - usual["retractions"] for other, usual in pairs),
                )
    return found


def print_table(found: dict[tuple[str, str], Change], names: Iterable[str]) -> None:
    """One line a field and engine."""
    defaults = Tuning()
    print(f"{'field':<18}{'default':>9}{'other':>9}  {'engine':<11}{'mean %':>8}", end="")
    print(f"{'least':>8}{'most':>8}{'retr.':>8}{'runs':>6}")
    for name in names:
        for engine in ENGINES:
            if (name, engine) not in found:
                continue
            change = found[name, engine]
            values = f"{getattr(defaults, name):>9}{VARIANTS[name]:>9g}"
            mean = statistics.fmean(change.seconds)
            print(f"{name:<18}{values}  {engine:<11}{mean:>+8.2f}", end="")
            print(f"{min(change.seconds):>+8.2f}{max(change.seconds):>+8.2f}", end="")
            print(f"{change.retractions:>+8}{len(change.seconds):>6}")
    for name, why in ELSEWHERE.items():
        print(f"{name:<18}{getattr(defaults, name):>9}           not shown: {why}")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "fields", nargs="*", metavar="FIELD", help="fields of Tuning (default: all)"
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["lanes"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument(
        "--requests", type=int, default=100_000, help="of each run (default: 100000)"
    )
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here as well")
    args = parser.parse_args()
    if unknown := [name for name in args.fields if name not in VARIANTS]:
        parser.error(f"no field {unknown[0]!r} to vary; there are {', '.join(VARIANTS)}")
    args.fields = args.fields or [*VARIANTS]
    if not args.table:
        run(args)
    found = changes(args)
    print_table(found, args.fields)
    if args.json is not None:
        rows = [
            {"field": field, "engine": engine} | change._asdict()
            for (field, engine), change in found.items()
        ]
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
