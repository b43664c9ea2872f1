"""Fitting an engine's slowness and step overhead to a step trace."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_clock import COST

from sglang.srt.blendserve.simulator.engine_fit import fit_engine, read_steps
from sglang.srt.blendserve.simulator.step_cost import StepWork

COLUMNS = (
    "measured_seconds", "prefill_compute", "prefill_memory", "prefill_online",
    "decode_compute", "decode_memory", "decode_online", "kv_compute", "kv_memory", "kv_online",
)  # fmt: skip


def write(path: Path, rows: Sequence[tuple[float, int, int, int]]) -> Path:
    """A trace of (seconds, prompt tokens, decodes, KV tokens) a step."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for seconds, prefill, decodes, kv in rows:
            writer.writerow([seconds, prefill, 0, 0, decodes, 0, 0, kv, 0, 0])
    return path


def steps_of(slowness: float, overhead: float, noise: float = 0.0) -> list[tuple[float, ...]]:
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(300):
        prefill, decodes = int(rng.integers(0, 64)), int(rng.integers(1, 32))
        kv = int(decodes * rng.integers(100, 1000))
        kernels = COST.step(StepWork(prefill, 0.0, 0, decodes, kv)).seconds - COST.overhead
        took = slowness * kernels + overhead
        rows.append((took * (1 + noise * rng.standard_normal()), prefill, decodes, kv))
    return rows


def test_finds_what_the_steps_were_made_of(tmp_path: Path) -> None:
    fit = fit_engine(write(tmp_path / "t.csv", steps_of(1.4, 0.25)), COST)
    assert fit.slowness == pytest.approx(1.4, rel=1e-3)
    assert fit.overhead == pytest.approx(0.25, rel=1e-2)
    assert fit.steps == 300
    assert fit.error < 1e-3


def test_steps_that_met_other_work_count_little(tmp_path: Path) -> None:
    rows = steps_of(1.4, 0.25, noise=0.01)
    rows[::20] = [(row[0] * 10, *row[1:]) for row in rows[::20]]
    fit = fit_engine(write(tmp_path / "t.csv", rows), COST)
    assert fit.slowness == pytest.approx(1.4, rel=0.02)


def test_an_overhead_below_zero_is_none(tmp_path: Path) -> None:
    fit = fit_engine(write(tmp_path / "t.csv", steps_of(2.0, -0.02)), COST)
    assert fit.overhead == 0.0
    assert 1.8 < fit.slowness < 2.0


def test_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.csv: 1 steps; 50 are needed"):
        fit_engine(write(tmp_path / "t.csv", steps_of(1, 1)[:1]), COST)
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv:2: not a step trace"):
        read_steps(other)
    with pytest.raises(ValueError, match="cannot be read"):
        read_steps(tmp_path / "absent.csv")
