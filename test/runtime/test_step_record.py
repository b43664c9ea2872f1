"""Metrics and step trace: what they say of a run adds up to what the run did.

pytest test/runtime/test_step_record.py
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_process import run, workload

from sglang.srt.blendserve.runtime.record.row_file import RowFile, trace_file
from sglang.srt.blendserve.runtime.record.step_record import COLUMNS, StepRecord
from sglang.srt.blendserve.settings import Settings

UNREACHABLE = {"blendserve_online_ttft": "0.001", "blendserve_online_tpot": "0.001"}
"""Latency targets (milliseconds) that leave offline requests the least that they always get."""


def test_a_row_has_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    trace = RowFile(path, StepRecord)
    trace.add(StepRecord(step=7, prefill_compute=64, measured_seconds=0.25))
    trace.add(StepRecord(step=8, rest_density=float("inf")))
    trace.flush()
    rows = [*csv.DictReader(path.open())]
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["prefill_compute"] == "64"
    assert float(rows[0]["measured_seconds"]) == 0.25
    assert rows[1]["rest_density"] == "inf"


def test_every_rank_has_a_file_of_its_own() -> None:
    alone = SimpleNamespace(tp_rank=0, tp_size=1, dp_rank=None, dp_size=1)
    assert trace_file("a/steps.csv", alone) == Path("a/steps.csv")
    one_of_many = SimpleNamespace(tp_rank=1, tp_size=2, dp_rank=3, dp_size=4)
    assert trace_file("a/steps.csv", one_of_many) == Path("a/steps.dp3.tp1.csv")
    assert trace_file("", one_of_many) is None


def test_a_trace_in_no_folder_is_refused_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"--blendserve-trace is 'nowhere/steps.csv'; there is no folder .*nowhere"
    ):
        Settings(trace="nowhere/steps.csv")


@pytest.mark.engine
def test_trace_and_series_add_up_to_the_run(
    tmp_path: Path,
    tiny_model: Path,
    stock_run: dict[str, Any],
) -> None:
    series = tmp_path / "series"
    series.mkdir()
    result = run(
        tmp_path,
        {
            "model_path": str(tiny_model),
            "schedule_policy": "blendserve",
            "max_total_tokens": 900,
            "chunked_prefill_size": 64,
            "enable_metrics": True,
            "blendserve_trace": str(tmp_path / "steps.csv"),
        },
        env={"PROMETHEUS_MULTIPROC_DIR": str(series)},
    )
    assert result["answers"] == stock_run["answers"]

    rows = [*csv.DictReader((tmp_path / "steps.csv").open())]
    total = {name: sum(float(row[name]) for row in rows) for name in COLUMNS}
    requests = workload()
    computed = total["prefill_compute"] + total["prefill_memory"] + total["prefill_online"]
    assert computed == total["prompt_tokens"] - total["hit_tokens"]
    if not result["retractions"]:
        assert total["prompt_tokens"] == sum(len(prompt) for prompt, _ in requests)
        assert total["hit_tokens"] == result["cached_tokens"]
    assert total["retractions"] == result["retractions"]
    # The first token of an answer comes out of its prefill.
    decoded = total["decode_compute"] + total["decode_memory"]
    assert decoded >= sum(len(answer) - 1 for answer in stock_run["answers"])
    assert total["evicted_tokens"] > 0
    assert total["measured_seconds"] > 0
    assert {int(row["kv_free"]) >= 0 for row in rows} == {True}
    assert int(rows[-1]["waiting"]) == 0

    published = read_series(series)
    assert published["sglang:blendserve_steps_total"] == len(rows)
    assert published["sglang:blendserve_prefill_tokens_total"] == computed
    assert published["sglang:blendserve_retracted_requests_total"] == total["retractions"]
    assert 0 < published["sglang:blendserve_cached_tokens"] <= 900
    assert published["sglang:blendserve_pool_requests"] == int(rows[-1]["running"])


@pytest.mark.engine
@pytest.mark.parametrize("targets", [{}, UNREACHABLE], ids=["default", "unreachable"])
def test_offline_prefill_makes_way_for_online_decodes(
    tmp_path: Path,
    tiny_model: Path,
    stock_run: dict[str, Any],
    targets: dict[str, str],
) -> None:
    requests = workload()
    online = {2, 5, 8}  # short prompts with long answers
    marked = iter(["job", len(requests) - 3, i] for i in range(len(requests) - 3))
    result = run(
        tmp_path,
        {
            "model_path": str(tiny_model),
            "schedule_policy": "blendserve",
            "max_total_tokens": 20_000,
            "chunked_prefill_size": 512,
            "blendserve_trace": str(tmp_path / "steps.csv"),
            **targets,
        },
        call={"rid": [f"chat{i}" if i in online else next(marked) for i in range(45)]},
    )
    assert result["answers"] == stock_run["answers"]
    rows = [*csv.DictReader((tmp_path / "steps.csv").open())]
    kinds = [
        (int(row["decode_online"]) > 0, int(row["prefill_compute"]) + int(row["prefill_memory"]))
        for row in rows
    ]
    first, last = (
        next(i for i, (online, _) in order if online)
        for order in (enumerate(kinds), reversed([*enumerate(kinds)]))
    )
    between = kinds[first : last + 1]
    assert sum(online for online, _ in between) >= 59
    offline = [int(row["decode_compute"]) + int(row["decode_memory"]) for row in rows]
    later = slice(first + 8, last + 1)  # what had begun before has gone on by then
    meanwhile = sum(offline[later]) + sum(tokens for _, tokens in kinds[later])
    assert meanwhile > 0, "the pool does not stand still meanwhile"
    # Prefill and decode share no forward here: they take turns, so no online request waits for
    # more than one prefill.
    assert all(one or other for (one, _), (other, _) in itertools.pairwise(between))
    if targets:  # how many tokens reachable ones leave depends on how fast the machine is
        assert max(tokens for _, tokens in between) <= 32


def read_series(folder: Path) -> dict[str, float]:
    """The published series, each summed over its own labels."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))
    found: dict[str, float] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
