"""SGLang's own scheduler over the simulated device, and the command around it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sglang.srt.blendserve.cli import main
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.full_run import FullRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.workload import Workload

KEYS = {
    "policy", "tokens_per_second", "seconds", "steps", "prefix_sharing", "prefix_sharing_optimum",
    "share_of_optimum", "compute_busy", "memory_busy", "kv_occupancy", "retractions",
    "scheduler_seconds", "chunk", "chunks_tried",
}  # fmt: skip


@pytest.mark.engine
@pytest.mark.parametrize("policy", ["fcfs", "blendserve"])
def test_the_real_scheduler_agrees_with_the_step_model(
    policy: str, mixed: Workload, machine: Machine
) -> None:
    """With memory to spare. Where it is short the two part ways by a tenth on so few requests under
    blendserve, for a reason that is not found yet (docs/results.md)."""
    from sglang.srt.blendserve.planner.device_spec import DeviceSpec

    machine = replace(machine, kv_slots=4 * machine.kv_slots)
    full = FullRun(mixed, machine, "Llama-3.1-8B", DeviceSpec.named("A100-80G"))
    ended: list[int] = []
    real = full.run(policy, chunks=(512,), progress=ended.append)
    assert sum(ended) == mixed.size
    model = FastRun(mixed, machine).run(policy, chunks=(512,))
    # So few requests run for a few dozen steps, where one step is a per cent or two; on thousands
    # the two were 0.8 % apart.
    assert real.seconds == pytest.approx(model.seconds, rel=0.08)
    assert real.prefix_sharing == pytest.approx(model.prefix_sharing, abs=0.02)


def test_the_command_writes_its_results(
    tmp_path: Path, trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["simulate", "--fast", "--trace", str(trace_file), "--requests", "200"]
    arguments += ["--policies", "dfs,blendserve", "--chunks", "512,2048", "--json", str(out)]
    assert main(arguments) == 0
    document = json.loads(out.read_text())
    assert document["workload"]["requests"] == 200
    assert document["machine"]["simulation"] == "fast step model"
    assert [result["policy"] for result in document["results"]] == ["dfs", "blendserve"]
    for result in document["results"]:
        assert set(result) == KEYS
    assert set(document["results"][0]["chunks_tried"]) == {"512", "2048"}
    assert "blendserve" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policies", "magic"], "magic"),
        (["--requests", "0"], "--requests 0"),
        (["--device", "calibrated"], "--calibration"),
        (["--model", "Llama-3.1-70B"], "raise --tp"),
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
