"""SGLang's own scheduler over the simulated device, and the command around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_workloads import requests
from two_releases import OLD

from sglang.srt.blendserve.cli import main
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.simulator import full_run
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.full_run import FullRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.workload import Workload

KEYS = {
    "policy", "tokens_per_second", "seconds", "steps", "prefix_sharing", "prefix_sharing_optimum",
    "share_of_optimum", "compute_busy", "memory_busy", "kv_occupancy", "retractions",
    "scheduler_seconds", "chunk", "conservativeness", "tried", "engines",
}  # fmt: skip


@pytest.mark.engine
@pytest.mark.parametrize(
    ("policy", "conservativeness"),
    [
        ("fcfs", 1.0),
        ("fcfs", 0.1),
        ("dfs", 1.0),
        ("dfs", 0.1),
        ("lpt-ewma", 0.1),
        ("blendserve", 1.0),
    ],
)
def test_the_real_scheduler_agrees_with_the_step_model(
    policy: str, conservativeness: float, mixed: Workload, machine: Machine
) -> None:
    """In a KV cache that is full for most of the run, where retractions are part of it.

    Ours with requests that must fit to their end: where they may be given back, single ones decide
    in so small a run, and either of the two is up to 9 % faster, now one and now the other. To
    their end it is up to 3 %. Twelve runs of 100,000 (``benchmark/simulate/matrix.py --full``)
    show how well they agree.
    """
    options = BlendOptions.of(earned=1e9)
    full = FullRun(mixed, machine, "Llama-3.1-8B", DeviceSpec.named("A100-80G"), options=options)
    ended: list[int] = []
    flags = {"chunks": (512,), "conservativeness": (conservativeness,)}
    real = full.run(policy, **flags, progress=ended.append)
    assert sum(ended) == mixed.size
    model = FastRun(mixed, machine, options).run(policy, **flags)
    # SGLang 0.5.23 thinks again after a retraction in another way than 0.5.17, which the step model
    # follows: 1.7 and 2.9 % faster where there are many of them, sharing 0.004 more.
    seconds, sharing = (0.04, 0.006) if conservativeness < 1.0 and not OLD else (0.01, 0.003)
    if policy == "blendserve":
        seconds, sharing = 0.04, 0.006
    assert real.seconds == pytest.approx(model.seconds, rel=seconds)
    assert real.prefix_sharing == pytest.approx(model.prefix_sharing, abs=sharing)


@pytest.mark.engine
@pytest.mark.parametrize("policy", ["fcfs", "blendserve"])
def test_both_simulations_count_with_measured_kernels(policy: str, mixed: Workload) -> None:
    machine = Machine.build("Llama-3.1-8B", "A100-80G", "lanes", kv_slots=6000, rates="tables")
    full = FullRun(mixed, machine, "Llama-3.1-8B", DeviceSpec.named("A100-80G"))
    flags = {"chunks": (512,), "conservativeness": (1.0,)}
    real, model = full.run(policy, **flags), FastRun(mixed, machine).run(policy, **flags)
    assert real.seconds == pytest.approx(model.seconds, rel=0.02)
    assert real.compute_busy == pytest.approx(model.compute_busy, rel=0.02)


@pytest.mark.engine
def test_a_window_is_filled_by_plan_in_both_alike(mixed: Workload, machine: Machine) -> None:
    options = BlendOptions(window=mixed.size // 4)
    full = FullRun(mixed, machine, "Llama-3.1-8B", DeviceSpec.named("A100-80G"), options=options)
    real, model = full.run("blendserve"), FastRun(mixed, machine, options).run("blendserve")
    assert real.seconds == pytest.approx(model.seconds, rel=0.03)
    assert real.prefix_sharing == pytest.approx(model.prefix_sharing, abs=0.01)


@pytest.mark.engine
def test_prompts_that_are_cut_to_tiles_get_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's prefill of less than a tile would be none: 25,000 steps in place of 1,500."""
    rng = np.random.default_rng(0)
    lengths = zip(rng.integers(700, 1000, 60), rng.integers(100, 300, 60), strict=True)
    long = requests([(int(p), int(d)) for p, d in lengths], cap=400, seed=3)
    full = FullRun(long, machine, "Llama-3.1-8B", DeviceSpec.named("A100-80G"))
    plain = full.run("blendserve", options=BlendOptions(chunk=512))
    monkeypatch.setattr(full_run, "_WORKER", "aligned_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "helpers"))
    tiled = full.run("blendserve", options=BlendOptions(chunk=512))
    assert tiled.steps < 1.5 * plain.steps


@pytest.mark.engine
@pytest.mark.parametrize(
    "options",
    [
        BlendOptions.of(told="wrong", earned=1e9),
        BlendOptions.of(reserve_all=True, lru_eviction=True),
    ],
)
def test_parts_of_the_policy_are_switched_off_in_both_alike(
    options: BlendOptions, mixed: Workload, machine: Machine
) -> None:
    full = FullRun(mixed, machine, "Llama-3.1-8B", DeviceSpec.named("A100-80G"), options=options)
    real, model = full.run("blendserve"), FastRun(mixed, machine, options).run("blendserve")
    assert real.seconds == pytest.approx(model.seconds, rel=0.01)
    assert model.seconds > 1.2 * FastRun(mixed, machine).run("blendserve").seconds


def test_the_command_writes_its_results(
    tmp_path: Path, trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["simulate", "--fast", "--trace", str(trace_file), "--requests", "200"]
    arguments += ["--policies", "dfs,blendserve", "--chunks", "512,2048", "--json", str(out)]
    assert main(arguments) == 0
    document = json.loads(out.read_text())
    assert document["workload"]["requests"] == 200
    machine = document["machine"]
    assert machine["simulation"] == "fast step model"
    assert (machine["engine"], machine["rates"]) == ("lanes", "tables")
    workload = document["workload"]
    # An A100's kernels reach more of its arithmetic than of its bandwidth.
    assert workload["density_here"] < workload["density"]
    assert machine["rates_source"].startswith("measured: kernel times of SGLang on A100-80G")
    assert [result["policy"] for result in document["results"]] == ["dfs", "blendserve"]
    for result in document["results"]:
        assert set(result) == KEYS
    tried = {(t["chunk"], t["conservativeness"]) for t in document["results"][0]["tried"]}
    assert tried == {(512, 1.0), (512, 0.1), (2048, 1.0), (2048, 0.1)}
    assert "blendserve" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policies", "magic"], "magic"),
        (["--requests", "0"], "--requests 0"),
        (["--chunks", "512,many"], "--chunks 512,many: give whole numbers"),
        (["--chunks", "0"], "at least one token"),
        (["--conservativeness", "little"], "--conservativeness little: give numbers"),
        (["--conservativeness", "1,0"], "must be above 0"),
        (["--device", "calibrated"], "--calibration"),
        (["--model", "Llama-3.1-70B"], "raise --tp"),
        (["--device", "B200"], "--engine lanes: what it costs on B200 to overlap"),
        (["--model", "Qwen3-30B-A3B", "--device", "H200"], "Give --rates peaks"),
        (["--rates", "peaks"], "--engine lanes: not at data-sheet rates"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--fast", "--workload", "trace1", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_calibration_file_changes_the_clock(
    tmp_path: Path, mixed: Workload, capsys: pytest.CaptureFixture[str]
) -> None:
    from sglang.srt.blendserve.simulator.calibration import Calibration

    path = tmp_path / "calibration.json"
    half = {"gemm_efficiency": 0.5, "bandwidth_efficiency": 0.5, "weights_efficiency": 0.5}
    half["attention_efficiency"] = 0.5
    path.write_text(json.dumps({"calibration": half}))
    seconds = [
        FastRun(
            mixed,
            Machine.build("Llama-3.1-8B", "A100-80G", "overlap", calibration=c, kv_slots=6000),
        )
        .run("fcfs", chunks=(512,))
        .seconds
        for c in (None, Calibration.load(path))
    ]
    assert seconds[1] == pytest.approx(2 * seconds[0])
    path.write_text(json.dumps({"calibration": {"speed": 1}}))
    with pytest.raises(ValueError, match="speed"):
        Calibration.load(path)
