"""Cells of a study: one policy on one workload and machine, run once and kept in a file.

Results are JSON lines, one a cell, with the cell's own description. A cell that is in the file is
not run again, so an interrupted study continues where it stopped; to run a policy again, forget it
(``studies.py --again POLICY``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from division import divided

from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.simulator.fast_run import OURS, FastRun
from sglang.srt.blendserve.simulator.full_run import FullRun
from sglang.srt.blendserve.simulator.kinds import make_workload
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.recipe import reference_cost
from sglang.srt.blendserve.simulator.workload import Workload

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """What is run, at measured kernel times; defaults are those of the main study."""

    policy: str
    workload: str = "trace1"
    requests: int = 400_000
    seed: int = 0
    chunk: int = 0
    """Chunk size of a peer, tokens; 0 for policies with a pace of their own."""
    conservativeness: float = 1.0
    """SGLang's ``--schedule-conservativeness`` under a peer."""
    model: str = "Llama-3.1-8B"
    device: str = "A100-80G"
    tp: int = 1
    engine: str = "lanes"
    order: str = "shuffled"
    """Of the file (`kinds.ORDERS`)."""
    scale: float = 8
    kv_slots: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Parts of our policies that differ from their defaults, by name (`BlendOptions.of`)."""
    simulation: str = "fast"
    """``fast``: the step model; ``full``: SGLang's scheduler."""
    replicas: int = 1
    """Data parallel replicas, each with a part of the requests."""
    division: str = ""
    """How the requests are divided over them: one of those of `division`."""
    fleet: dict[str, Any] = field(default_factory=dict)
    """What is special about them where they are fed from one plan (`many_engines.Fleet`)."""

    def key(self) -> str:
        """The cell as text; equal cells have equal keys."""
        return json.dumps(asdict(self), sort_keys=True)


def load(study: str) -> dict[str, dict[str, Any]]:
    """Results of a study by key of their cells."""
    path = RESULTS / f"{study}.jsonl"
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # Fields that a row does not name had their defaults.
    cells = [Cell(**row["cell"]) for row in rows]
    return {
        cell.key(): {"cell": asdict(cell), "result": row["result"]}
        for cell, row in zip(cells, rows, strict=True)
    }


def forget(policy: str) -> None:
    """Delete the results of ``policy`` in all studies."""
    for path in RESULTS.glob("*.jsonl"):
        left = [row for row in load(path.stem).values() if row["cell"]["policy"] != policy]
        lines = [json.dumps(row, sort_keys=True) + "\n" for row in left]
        path.write_text("".join(lines), encoding="utf-8")


def run(study: str, cells: Iterable[Cell], minutes: float | None = None) -> None:
    """Run the cells that are not in the study's file yet; begin none after ``minutes``.

    A cell that another study has run is taken from there.
    """
    RESULTS.mkdir(exist_ok=True)
    begun = time.monotonic()
    done = load(study)
    known = {key: row for path in RESULTS.glob("*.jsonl") for key, row in load(path.stem).items()}
    left = [cell for cell in cells if cell.key() not in done]
    for number, cell in enumerate(left):
        row = known.get(cell.key())
        if row is None:
            if minutes is not None and time.monotonic() - begun > 60 * minutes:
                print(f"{study}: {len(left) - number} cells are left", flush=True)
                return
            row = {"cell": asdict(cell), "result": play(cell)}
        append(study, row)
        what = [cell.workload, cell.seed, cell.device, cell.engine, cell.policy, cell.chunk]
        what += [cell.conservativeness, cell.division, cell.replicas, cell.fleet, cell.options]
        result = row["result"]
        print(
            f"{study} {number + 1}/{len(left)}: {' '.join(str(part) for part in what if part)}: "
            f"{result['tokens_per_second']:.0f} tokens/s, "
            f"{result.get('share_of_optimum', float('nan')):.3f} of the bound, "
            f"{result['scheduler_seconds']:.0f} s",
            flush=True,
        )


def append(study: str, row: dict[str, Any]) -> None:
    """Add a cell and its result to the study's file."""
    with (RESULTS / f"{study}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")


def play(cell: Cell) -> dict[str, Any]:
    """Run one cell; its figures, rounded to six digits."""
    workload = _workload(cell.workload, cell.requests, cell.seed, cell.order)
    machine = Machine.build(
        cell.model,
        cell.device,
        cell.engine,
        ranks=cell.tp,
        scale=cell.scale,
        kv_slots=cell.kv_slots,
        rates="tables",
    )
    ours = cell.policy in OURS
    flags = {} if ours else {"chunks": (cell.chunk,), "conservativeness": (cell.conservativeness,)}
    options = BlendOptions.of(**cell.options)
    if cell.replicas > 1:
        result = divided(
            workload, machine, cell.policy, cell.replicas, cell.division, flags, cell.fleet
        )
    elif cell.simulation == "full":
        device = DeviceSpec.named(cell.device)
        full = FullRun(workload, machine, cell.model, device, cell.tp)
        result = full.run(cell.policy, options=options, **flags).as_dict()
    else:
        played = _fast(cell, workload, machine).run(cell.policy, options=options, **flags)
        result = played.as_dict()
    result.pop("tried", None)
    result["density"] = workload.density(reference_cost())
    return {name: rounded(value) for name, value in result.items()}


def rounded(value: Any) -> Any:
    """Floats to six digits, in lists too."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _fast(cell: Cell, workload: Workload, machine: Machine) -> FastRun:
    """The step model over ``workload``; its tree is kept for the next cell, if that has it too."""
    key = (cell.workload, cell.order, cell.requests, cell.seed, cell.scale)
    if key not in _RUNNERS:
        _RUNNERS.clear()
        _RUNNERS[key] = FastRun(workload, machine)
    _RUNNERS[key].machine = machine
    return _RUNNERS[key]


_RUNNERS: dict[tuple[str, str, int, int, float], FastRun] = {}


@lru_cache(maxsize=1)
def _workload(workload: str, requests: int, seed: int, order: str) -> Workload:
    return make_workload(workload, requests, seed, order)
