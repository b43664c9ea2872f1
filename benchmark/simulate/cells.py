"""Cells of a study: one policy on one workload and machine, run once and kept in a file.

Results are JSON lines, one a cell, with the cell's own description. A cell that is in the file is
not run again, so an interrupted study continues where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.fast_run import OURS, BlendOptions, FastRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.recipe import Recipe

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """What is run; defaults are those of the main study."""

    policy: str
    workload: str = "trace1"
    requests: int = 400_000
    seed: int = 0
    chunk: int = 0
    """Chunk size of a peer, tokens; 0 for policies with a pace of their own."""
    model: str = "Llama-3.1-8B"
    device: str = "A100-80G"
    tp: int = 1
    engine: str = "overlap"
    scale: float = 8
    kv_slots: int | None = None
    interference: float = 1.08
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `BlendOptions` that differ from their defaults."""

    def key(self) -> str:
        """The cell as text; equal cells have equal keys."""
        return json.dumps(asdict(self), sort_keys=True)


def load(study: str) -> dict[str, dict[str, Any]]:
    """Results of a study by key of their cells."""
    path = RESULTS / f"{study}.jsonl"
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {json.dumps(row["cell"], sort_keys=True): row for row in rows}


def run(study: str, cells: Iterable[Cell]) -> None:
    """Run the cells that are not in the study's file yet."""
    RESULTS.mkdir(exist_ok=True)
    done = load(study)
    left = [cell for cell in cells if cell.key() not in done]
    for number, cell in enumerate(left):
        result = play(cell)
        row = {"cell": asdict(cell), "result": result}
        with (RESULTS / f"{study}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        print(
            f"{study} {number + 1}/{len(left)}: {cell.workload} {cell.engine} {cell.policy} "
            f"{cell.chunk or ''} {cell.options or ''}: {result['tokens_per_second']:.0f} tokens/s, "
            f"{result['share_of_optimum']:.3f} of the bound, {result['scheduler_seconds']:.0f} s",
            flush=True,
        )


def play(cell: Cell) -> dict[str, Any]:
    """Run one cell; its figures, rounded to six digits."""
    runner = _runner(
        cell.workload, cell.requests, cell.seed, cell.model, cell.device, cell.tp, cell.engine,
        cell.scale, cell.kv_slots, cell.interference,
    )  # fmt: skip
    options = BlendOptions(**cell.options)
    chunks = (cell.chunk,) if cell.policy not in OURS else ()
    result = runner.run(cell.policy, chunks=chunks, options=options).as_dict()
    result.pop("chunks_tried")
    result["density"] = round(runner.whole.density(runner.machine.cost), 4)
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in result.items()
    }


@lru_cache(maxsize=1)
def _runner(
    workload: str,
    requests: int,
    seed: int,
    model: str,
    device: str,
    tp: int,
    engine: str,
    scale: float,
    kv_slots: int | None,
    interference: float,
) -> FastRun:
    machine = Machine.build(
        model,
        device,
        engine,
        ranks=tp,
        scale=scale,
        calibration=Calibration(interference=interference),
        kv_slots=kv_slots,
    )
    return FastRun(_workload(workload, requests, seed), machine)


@lru_cache(maxsize=1)
def _workload(workload: str, requests: int, seed: int) -> Any:
    return Recipe.parse(workload).workload(requests, seed)
