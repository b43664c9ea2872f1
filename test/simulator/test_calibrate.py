"""What `calibrate` writes is what `simulate` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.cost.kernel_times import TABLES, KernelTimes
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.simulator import calibrate, measure_kernels, probes
from sglang.srt.blendserve.simulator.calibration import Calibration, calibrated_device
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.step_cost import StepWork

MODEL = "SmolLM2-135M"
SMALL = measure_kernels.Sizes(
    weights=1 << 20,
    work=1e8,
    most_tokens=16,
    prompts=((1, 2), (16, 64)),
    decodes=((1, 4), (16, 64)),
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few shapes and one repeat: what is measured is right or wrong in form alone."""
    monkeypatch.setattr(calibrate, "CPU", SMALL)
    monkeypatch.setattr(probes, "_PROBE_SECONDS", 0.0)


@pytest.fixture
def calibrated(quick: None, tmp_path: Path) -> Path:
    path = tmp_path / "here.json"
    assert cli.main(["calibrate", "--device", "cpu", "--output", str(path)]) == 0
    return path


def test_all_kernels_of_the_model_are_measured(calibrated: Path) -> None:
    calibration = Calibration.load(calibrated)
    assert calibration.kernels is not None
    assert list(calibration.kernels) == list(TABLES)
    shape = ModelSpec.named(MODEL).shape
    assert shape is not None
    rows = sum(map(len, calibration.kernels.values()))
    assert rows == measure_kernels.probes(shape, SMALL) == 5 * 3 + 4 + 4
    times = calibration.kernel_times()
    assert isinstance(times, KernelTimes)
    for row in calibration.kernels["gemm"]:
        curve = times.product(row["n"], row["k"])
        assert curve(row["m"]) == pytest.approx(row["milliseconds"] / 1e3)
    assert times.layouts("prefill") == times.layouts("decode") == [(9, 3, 64)]


def test_simulate_takes_the_file(calibrated: Path, tmp_path: Path) -> None:
    device = calibrated_device(calibrated)
    machine = Machine.build(
        MODEL, device, "sequential", calibration=Calibration.load(calibrated), rates=None
    )
    assert machine.rates == "tables"
    out = tmp_path / "out.json"
    flags = f"--fast --calibration {calibrated} --device calibrated --engine sequential --scale 1"
    flags += f" --model {MODEL} --kv-slots 20000 --workload documents --requests 40 --json {out}"
    assert cli.main(["simulate", *flags.split(), "--policies", "fcfs", "--chunks", "512"]) == 0
    document = json.loads(out.read_text())
    assert document["machine"]["rates"] == "tables"
    assert document["machine"]["rates_source"] == "measured: here.json"


def test_a_trace_s_slowness_is_that_of_the_kernels(calibrated: Path) -> None:
    """Kernels that take twice as long and 3 ms a step more give twice the time and 3 ms more."""
    values = Calibration.load(calibrated).as_dict()
    fast, slow = (
        Machine.build(
            MODEL,
            calibrated_device(calibrated),
            "sequential",
            calibration=Calibration(**{**values, **more}),
            kv_slots=1000,
            rates="tables",
        ).steps
        for more in ({}, {"slowness": 2.0, "step_overhead": 0.003})
    )
    work = (8, 100.0, 1, 3, 100)
    one, other = (steps.step(StepWork(*work)) for steps in (fast, slow))
    assert other.seconds == pytest.approx(2 * one.seconds + 0.003)
    assert other.compute == pytest.approx(2 * one.compute)


def test_spoilt_tables_are_refused(calibrated: Path) -> None:
    document = json.loads(calibrated.read_text())
    del document["calibration"]["kernels"]["gemm"]
    calibrated.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="kernel times lack or spoil 'gemm'"):
        Calibration.load(calibrated).kernel_times()


def test_a_model_with_experts_is_refused(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device", "cpu", "--model", "Mixtral-8x7B", "--output", str(tmp_path / "x.json")]
    assert cli.main(["calibrate", *flags]) == 2
    assert "take a dense model" in capsys.readouterr().err
