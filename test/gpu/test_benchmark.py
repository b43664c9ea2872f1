"""The GPU benchmark's own logic, without an engine, and once with one on the CPU.

pytest test/gpu/test_benchmark.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mixed_kernel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

GPU = Path(__file__).parents[2] / "benchmark" / "gpu"
sys.path.insert(0, str(GPU))

import bench  # noqa: E402
import calibrate_overlap  # noqa: E402
import check_attention  # noqa: E402
import check_correctness  # noqa: E402
import child  # noqa: E402
import install_delta  # noqa: E402
import predict  # noqa: E402
from budget import Budget  # noqa: E402
from calls import CALLS, spec_of  # noqa: E402
from loads import GUESS, Load, Scale  # noqa: E402
from summary import summarise, table  # noqa: E402
from utilisation import busy, read_steps  # noqa: E402
from variants import VARIANTS, engine_flags, named  # noqa: E402

from sglang.srt.blendserve.cost.cost_model import CostModel  # noqa: E402
from sglang.srt.blendserve.cost.device_spec import DeviceSpec  # noqa: E402
from sglang.srt.blendserve.cost.model_spec import ModelSpec  # noqa: E402
from sglang.srt.blendserve.simulator.calibration import Calibration  # noqa: E402

COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("H200"))


def run(seed: int, speed: float, seconds: float = 10.0) -> dict[str, Any]:
    return {
        "about": {"trace": "trace1", "seed": seed},
        "tokens_per_second": speed,
        "seconds": seconds,
        "cached_tokens": 5,
        "retractions": 0,
        "wrong_lengths": 0,
    }


def test_ratios_are_of_the_rounds_that_both_ran() -> None:
    results = {
        "ours": {"ours": True, "what": "", "runs": [run(0, 30), run(1, 33), run(2, 99)]},
        "dfs": {"ours": False, "what": "", "runs": [run(0, 20), run(1, 30)]},
        "fcfs": {"ours": False, "what": "", "runs": [run(0, 10)]},
    }
    optimum = {f"trace1/{seed}": 5.0 for seed in range(3)}
    rows = {row["variant"]: row for row in summarise(results, optimum)}
    assert rows["ours"]["best_stock"] == "dfs"
    assert rows["ours"]["against_best_stock"] == pytest.approx((30 / 20 + 33 / 30) / 2)
    assert rows["fcfs"]["against_dfs"] == pytest.approx(0.5)
    assert rows["ours"]["share_of_optimum"] == pytest.approx(0.5)
    assert [row["variant"] for row in summarise(results, None)] == ["ours", "dfs", "fcfs"]
    assert "| trace1 | ours | 33 |" in table(list(rows.values()))


def test_ours_alone_has_no_ratio() -> None:
    (row,) = summarise({"ours": {"ours": True, "what": "", "runs": [run(0, 30)]}}, None)
    assert row["best_stock"] is row["against_best_stock"] is row["share_of_optimum"] is None


@pytest.mark.parametrize("spec", ["H100", "H200"])
@pytest.mark.parametrize("call", CALLS)
def test_each_of_the_three_calls_is_expected_to_fit(
    call: str, spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--out", str(tmp_path), "--call", call, "--spec", spec, "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    expected, limit = (float(word) for word in re.findall(r"(\d+) s", last))
    assert expected <= limit == 200
    assert "blend-chunks" in CALLS[call]["variants"]


def test_a_flag_goes_before_what_a_call_sets() -> None:
    made = bench.parser()
    assert made.parse_args(["--out", "o"]).scale == 16
    args = bench.parse(["--out", "o", "--call", "b", "--waves", "3"])
    assert (args.waves, args.rounds, args.budget) == (3, 1, 200)


def test_the_card_is_recognised() -> None:
    assert spec_of("NVIDIA H100 80GB HBM3, 570.1") == "H100"
    assert spec_of("NVIDIA H200, 570.1") == spec_of("not available: no such file") == "H200"


def test_what_does_not_fit_is_named() -> None:
    budget = Budget(limit=100.0, began=time.time() - 50, reserve=10.0)
    assert budget.allows("a short thing", 20)
    assert not budget.allows("a long thing", 60)
    assert len(budget.dropped) == 1
    assert budget.dropped[0].startswith("a long thing: needs about 60 s")


def test_a_script_that_hangs_is_stopped_and_what_it_wrote_counts(tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(
        "import sys, time, pathlib\n"
        "pathlib.Path(sys.argv[2]).write_text('{\"done\": 1}')\n"
        "time.sleep(600)\n"
    )
    result = child.run(str(script), {}, tmp_path, "hangs", 3)
    assert result["done"] == 1
    assert result["error"] == "stopped after 3 s"


def test_a_script_that_fails_says_why(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("raise RuntimeError('no such kernel')\n")
    result = child.run(str(script), {}, tmp_path, "fails", 30)
    assert "no such kernel" in result["error"]


def test_a_load_keeps_the_traces_ratio_of_work_and_says_its_waves() -> None:
    scale = Scale.of("Llama-3.1-8B", "H200", 16.0)
    load = Load.draw("trace2", scale, 2.0, 0)
    about = load.describe()
    assert about["compute_to_memory"] == pytest.approx(
        about["compute_to_memory_full_size"], rel=0.1
    )
    assert about["sharing"] == pytest.approx(0.35, abs=0.04)
    assert about["sources"]["video"]["waves"] == pytest.approx(2.0, rel=0.1)
    assert about["scaling"]["kv_slots"] == about["scaling"]["full_kv_slots"] // 16
    # No request is larger than the cache, and caps are above true lengths.
    w = load.workload
    assert (w.prompt_tokens + w.output_tokens).max() < scale.kv_slots
    assert (w.max_tokens >= w.output_tokens).all()
    assert (w.max_tokens > w.output_tokens).mean() > 0.9
    bounds = load.bounds(GUESS)
    assert bounds["optimum_seconds"] == max(bounds["compute_seconds"], bounds["memory_seconds"])


def test_an_impossible_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="use another --scale"):
        Load.draw("trace1", Scale.of("Llama-3.1-8B", "H200", 400.0), 1.0, 0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["decode", "prefill", "mixed"]),
        st.integers(0, 4096),
        st.integers(0, 500),
        st.integers(0, 500_000),
    ),
    min_size=2,
    max_size=60,
)


@given(steps=STEPS)
@settings(deadline=None)
def test_the_work_of_every_step_is_in_some_window(
    steps: list[tuple[str, int, int, int]],
) -> None:
    began, seconds = 1e9, 12.0
    rows = []
    for number, (kind, prefill, decodes, kv) in enumerate(steps):
        rows.append(
            {
                "time": began + seconds * number / len(steps),
                "kind": kind,
                "prefill_tokens": 0 if kind == "decode" else prefill,
                "prefill_scores": 0.0,
                "decodes": 0 if kind == "prefill" else decodes,
                "kv_tokens": 0 if kind == "prefill" else kv,
            }
        )
    series = busy(rows, began, seconds, COST)
    memory = sum(
        float(COST.kv_read_seconds(row["kv_tokens"]))
        + float(COST.weights_seconds(row["prefill_tokens"] + row["decodes"]))
        for row in rows
    )
    # The last pass of a kind may reach beyond the end: its typical length is not known then.
    lone = sum(
        1
        for kinds in (("decode", "mixed"), ("prefill",))
        if sum(row["kind"] in kinds for row in rows) == 1
    )
    if not lone:
        assert series["mean_memory"] * seconds == pytest.approx(memory, rel=1e-6, abs=1e-9)
    assert min(series["compute"]) >= -1e-9
    assert len(series["memory"]) == 60


def test_a_step_log_that_breaks_off_is_read_up_to_there(tmp_path: Path) -> None:
    log = tmp_path / "steps.csv"
    log.write_text(
        "time,kind,prefill_tokens,prefill_scores,decodes,kv_tokens\n"
        "9.0,decode,0,0,1,10\n10.0,decode,0,0,3,30\n11.0,pre"
    )
    assert [row["decodes"] for row in read_steps(log, 9.5, 5.0)] == [3.0]


def test_the_calibration_is_one_that_simulate_reads(tmp_path: Path) -> None:
    target = tmp_path / "calibration.json"
    spec = DeviceSpec("test", 1e11, 1e10, 1e10, "")
    result = calibrate_overlap.calibrate("cpu", spec, calibrate_overlap.SMALL)
    target.write_text(json.dumps(result))
    calibration = Calibration.load(target)
    assert calibration.gemm_efficiency == result["calibration"]["gemm_efficiency"]
    assert calibration.interference > 0
    splits = result["measurements"]["overlap"]
    assert len(splits) >= 3
    for row in splits:
        assert row["gain_over_sequence"] > 0
    tokens = [row["tokens"] for row in result["measurements"]["gemm"]]
    assert result["measurements"]["gemm_knee_tokens"] in tokens


def test_the_attention_check_tells_right_from_wrong(tmp_path: Path) -> None:
    right = check_attention.kernel("cpu")
    case = check_attention.SMALL[1]
    assert check_attention.check("cpu", 64, case, right)["ok"]

    def wrong(**arguments: Any) -> Any:
        return right(**arguments) * 1.05

    assert not check_attention.check("cpu", 64, case, wrong)["ok"]
    assert check_attention.main({"device": "cpu"}, tmp_path / "out.json") == 0


def test_the_check_of_mixed_steps_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_attention, "MIXED", ((30, 0), (9, 17), (1, 900), (1, 1), (2, 0)))
    right = mixed_kernel.BatchAttention()
    assert check_attention.check_mixed("cpu", 64, right)["ok"]

    class Wrong(mixed_kernel.BatchAttention):
        """Leaves out the newest token of the one long decode."""

        def plan(self, *args: Any, **more: Any) -> None:
            super().plan(*args, **more)
            self.planned["slots"][2] = self.planned["slots"][2][:-1]

    assert not check_attention.check_mixed("cpu", 64, Wrong())["ok"]


def test_a_kernel_that_is_not_there_spoils_no_other_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    assert check_attention.main({"device": "cpu", "fused": True}, tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["ok"]
    assert not found["fused_ok"]
    assert "flashinfer" in found["fused_error"]


def test_one_kernel_for_mixed_steps_is_a_variant() -> None:
    [variant] = named(["blend-fused"])
    assert variant.ours
    assert variant.fused
    flags = engine_flags(variant, "cuda", "fa3", 5000)
    # Decodes alone, and prompts alone, go as they do elsewhere.
    assert flags["prefill_attention_backend"] == "blend_flashinfer"
    assert flags["attention_backend"] == "fa3"
    assert "prefill_attention_backend" not in engine_flags(variant, "cpu", "fa3", 5000)


def test_answers_are_compared_one_by_one() -> None:
    found = check_correctness.compare([[1, 2], [3], [3]], [[1, 2], [4], [3]])
    assert found == {"answers": 3, "equal": 2, "different": [1], "distinct_reference": 2}


def test_the_package_is_installed_without_pip(tmp_path: Path) -> None:
    install_delta.install(tmp_path)
    assert not (tmp_path / "sglang").exists()
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert found.metadata["Name"] == "sglang_blendserve"
    assert [(e.group, e.value) for e in found.entry_points] == [
        ("sglang.srt.plugins", "sglang_blendserve:register")
    ]
    # As at a start, with nothing else of ours: Python reads the .pth file of that folder.
    code = f"""if True:
        import site, sys
        sys.meta_path = [one for one in sys.meta_path if one.__module__ != "sglang_blendserve"]
        sys.path = [one for one in sys.path if not one.endswith("/python/boot")]
        sys.modules.pop("sglang_blendserve", None)
        site.addsitedir({str(tmp_path)!r})
        (finder,) = [one for one in sys.meta_path if one.__module__ == "sglang_blendserve"]
        print(finder.find_spec("sglang.srt.blendserve").origin)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    package = tmp_path / "sglang_blendserve" / "blendserve"
    assert done.stdout.strip() == str(package / "__init__.py")
    assert (package / "plugin.py").is_file()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_flags_do_not_contradict_each_other(variant: Any, device: str) -> None:
    from sglang.srt.blendserve.runtime.overlap import pdmux
    from sglang.srt.blendserve.settings import Settings

    flags = engine_flags(variant, device, "fa3", 1000)
    assert flags["max_total_tokens"] == 1000
    own = Settings.take_from(flags)
    not_given = {
        "chunked_prefill_size": None,
        "enable_mixed_chunk": False,
        "pdmux_config_path": None,
        "disaggregation_mode": "null",
    }
    flags |= pdmux.flags(SimpleNamespace(**(not_given | flags)), own)
    if own.overlap != "off":
        assert flags["enable_pdmux"]
    if flags.get("enable_pdmux"):
        assert flags["chunked_prefill_size"] == -1
        assert flags["disable_overlap_schedule"]
        assert not flags.get("enable_mixed_chunk")


def test_unknown_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unknown 'fifo'; known: blend-chunks"):
        named(["dfs", "fifo"])
    out = ["--out", str(tmp_path)]
    assert bench.main([*out, "--variants", "fifo"]) == 2
    assert bench.main([*out, "--only", "facts,fame"]) == 2
    assert "unknown 'fame'" in capsys.readouterr().err


def test_the_plan_of_a_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--out", str(tmp_path), "--tiny", "--dry-run", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "blend-chunks, dfs-mixed" in printed
    assert "dfs-mixed: about" in printed


def test_no_time_left_is_no_error(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--tiny", "--device", "cpu", "--rounds", "1"]
    assert bench.main([*arguments, "--budget", "1"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rows"] == []
    dropped = " ".join(summary["dropped"])
    for what in ("attention", "calibrate", "correctness", "blend-chunks", "dfs"):
        assert what in dropped


def test_one_command_sets_up_and_runs(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "up.sh").write_text('export SET_UP="$(dirname "${BASH_SOURCE[0]}")"; echo "set up"\n')
    command = ["bash", str(GPU / "run.sh"), str(tmp_path / "out"), "--wheels", str(wheels)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*command, "--tiny", "--dry-run", "--rounds", "1"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("set up")
    assert "variants: blend-chunks" in done.stdout
    (wheels / "up.sh").write_text("return 3\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "setting up from" in done.stderr


def test_predicted_ratios_stand_beside_measured_ones() -> None:
    predicted = {
        "trace1": {
            "dfs": {"tokens_per_second": 100.0},
            "blend-chunks": {"tokens_per_second": 150.0},
        }
    }
    rows = [
        {"trace": "trace1", "variant": "blend-chunks", "against_dfs": 1.25},
        {"trace": "trace1", "variant": "lpm-mixed", "against_dfs": 1.0},
        {"trace": "trace9", "variant": "blend-chunks", "against_dfs": None},
    ]
    assert predict.beside(predicted, {"rows": rows}) == [
        "trace1 blend-chunks against dfs: predicted 1.500, measured 1.250, 20.0% apart"
    ]


@pytest.mark.parametrize(
    ("call", "facts", "rates", "device"),
    [("a", "NVIDIA H100 80GB", "peaks", "H100"), ("b", None, "tables", "H200")],
)
def test_calls_are_predicted_with_tables_where_there_are_some(
    call: str,
    facts: str | None,
    rates: str,
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if facts is not None:
        (tmp_path / "facts.json").write_text(json.dumps({"gpu": facts}))
    monkeypatch.setattr(predict, "predict", lambda load, calibration: {})
    assert predict.main(["--out", str(tmp_path), "--call", call]) == 0
    found = json.loads((tmp_path / "predicted.json").read_text())
    assert (found["rates"], found["device"]) == (rates, device)
    assert found["scale"]["model"] == CALLS[call]["model"]
    assert ("no measured rates" in capsys.readouterr().err) == (rates == "peaks")


@pytest.mark.engine
def test_a_tiny_run_on_the_cpu(tmp_path: Path) -> None:
    """Set-up, one variant of ours through the real engine, true lengths, summary, figure."""
    arguments = ["--out", str(tmp_path), "--tiny", "--device", "cpu", "--rounds", "1"]
    stages = ["--only", "facts,attention,throughput,utilisation", "--variants", "blend-chunks"]
    assert bench.main([*arguments, *stages, "--budget", "500"]) == 0
    (row,) = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert row["variant"] == "blend-chunks"
    assert row["wrong_lengths"] == 0
    (one,) = json.loads((tmp_path / "utilisation.json").read_text()).values()
    assert one["passes"] > 50
    result = json.loads((tmp_path / "run-blend-chunks.json").read_text())
    assert result["state"]["lanes"]["decode_steps_beside_prefill"] > 0
    # A second call finds the results and runs nothing.
    before = (tmp_path / "run-blend-chunks.json").stat().st_mtime_ns
    assert bench.main([*arguments, *stages, "--budget", "500"]) == 0
    assert (tmp_path / "run-blend-chunks.json").stat().st_mtime_ns == before
    assert np.isfinite(row["tokens_per_second"])
