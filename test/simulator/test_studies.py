"""The studies of benchmark/simulate: their cells, and how they divide requests over replicas.

Run: pytest test/simulator/test_studies.py
"""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sglang.srt.blendserve.policy.tuning import Tuning
from sglang.srt.blendserve.simulator.kinds import make_workload
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.workload import Workload

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmark" / "simulate"))

import cells
import figures
import matrix
import studies
import tuning
from division import DIVISIONS, SUB_TREES, divided, shares
from measured_tables import MEASURED_TABLES
from study_tables import STUDY_TABLES

import tables

_workload = cache(make_workload)
_machine = cache(Machine.build)


@pytest.mark.parametrize("study", studies.STUDIES)
def test_cells_are_told_apart_and_can_be_built(study: str) -> None:
    made = studies.STUDIES[study]()
    assert made
    assert len({cell.key() for cell in made}) == len(made)
    for cell in made:
        BlendOptions.of(**cell.options)
        _workload(cell.workload, 1000, 0, cell.order)
        ranks, scale = cell.tp, cell.scale
        _machine(cell.model, cell.device, cell.engine, ranks=ranks, scale=scale, rates="tables")


def test_documents_have_all_tables_and_no_others() -> None:
    made = {*tables.TABLES, *STUDY_TABLES, *MEASURED_TABLES}
    assert set(tables.named_in(tables.DOCUMENT.read_text(encoding="utf-8"))) <= made
    assert figures.FIGURES


def test_runs_for_the_other_simulation_are_drawn_by_a_seed_alone() -> None:
    drawn = matrix.agreement()
    assert len(drawn) == len({cell.key() for cell in drawn}) == matrix.AGREEMENT
    assert all(cell.simulation == "full" for cell in drawn)
    ours = [cell for cell in drawn if cell.policy == "blendserve"]
    assert len(ours) == matrix.AGREEMENT // 3
    assert drawn == matrix.agreement()


def test_a_cell_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    wanted = [cells.Cell("fcfs", requests=200, chunk=chunk) for chunk in (256, 512)]
    cells.run("small", wanted[:1])
    first = (tmp_path / "small.jsonl").read_text()
    cells.run("small", wanted)
    both = (tmp_path / "small.jsonl").read_text()
    assert both.startswith(first)
    assert [row["cell"]["chunk"] for row in cells.load("small").values()] == [256, 512]
    cells.forget("dfs")
    assert (tmp_path / "small.jsonl").read_text() == both
    cells.forget("fcfs")
    assert cells.load("small") == {}


def test_options_are_those_of_the_policy_s_parts_by_name() -> None:
    changed = {"reserve_all": True, "bias": 0.2, "arrival_order": True, "chunk": 512}
    options = BlendOptions.of(**changed)
    assert (options.tuning.reserve_all, options.tuning.bias, options.chunk) == (True, 0.2, 512)
    assert options.rules.arrival_order
    values = options.as_dict()
    assert {name: values[name] for name in changed} == changed
    assert BlendOptions.of(**values) == options
    with pytest.raises(TypeError, match="no_such_field"):
        BlendOptions.of(no_such_field=1)


def test_every_constant_of_the_policy_is_varied_or_said_to_be_out_of_reach() -> None:
    assert {f.name for f in fields(Tuning)} == {*tuning.VARIANTS, *tuning.ELSEWHERE}
    usual = Tuning()
    for name, other in tuning.VARIANTS.items():
        assert other != getattr(usual, name)


@pytest.mark.parametrize("division", DIVISIONS)
def test_every_request_goes_to_one_replica(
    division: str, mixed: Workload, machine: Machine
) -> None:
    parts = shares(mixed, machine, 3, division)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(mixed.size))
    result = divided(mixed, machine, "blendserve", 3, division, {})
    assert result["seconds"] == max(result["seconds_of_each"])
    assert sum(result["requests_of_each"]) == mixed.size


def test_sub_trees_keep_more_sharing_than_turns(mixed: Workload, machine: Machine) -> None:
    kept = {d: sum(mixed.take(p).shared_tokens for p in shares(mixed, machine, 4, d))
            for d in DIVISIONS}  # fmt: skip
    assert kept[SUB_TREES] > min(kept.values())
