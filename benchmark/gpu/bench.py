"""Measure overlapped execution on a GPU: set-up checks, then variants x traces, in one call.

    bash benchmark/gpu/run.sh OUT --wheels FOLDER        # sets up, then runs this
    bash benchmark/gpu/run.sh OUT --wheels FOLDER --call a   # at most 200 s; then b, c (calls.py)
    python benchmark/gpu/bench.py --out OUT --dry-run    # the plan of a call, on any machine
    python benchmark/gpu/bench.py --out OUT --device cpu --tiny --variants blend-chunks

Stages, each in processes of its own: facts, attention (the kernel against float32), correctness
(greedy answers with and without overlap), calibrate (rates and interference), throughput, and
utilisation (figure). What does not fit into --budget is left out, the least valuable first, and
named in OUT/summary.md. A stage or variant whose result is in OUT already is not run again; delete
its file, or give --again. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import child
from budget import Budget
from calls import CALLS, COMMON, spec_of
from dummy_model import SHAPES, config_folder, random_model
from loads import GUESS, Load, Scale
from summary import summarise, table
from utilisation import Sampler, busy, draw, read_steps
from variants import DEFAULT, VARIANTS, Variant, engine_flags, named

STAGES = ("facts", "attention", "calibrate", "correctness", "throughput", "utilisation")
COMPILING = 180.0
"""What FlashInfer's kernel for mixed steps takes to compile, in two sizes, seconds. A guess."""
EXPECTED = {"attention": 25.0, "calibrate": 45.0, "correctness": 50.0}
"""Seconds of a stage before it is known; correctness for each engine."""

REPOSITORY = Path(__file__).resolve().parents[2]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True, help="folder for results")
    made.add_argument("--only", default=",".join(STAGES), help="stages (default: all)")
    made.add_argument(
        "--variants",
        default=",".join(DEFAULT),
        help="engines, in the order of their worth (default: %(default)s)",
    )
    made.add_argument("--traces", default="trace1", help="(default: trace1)")
    made.add_argument("--rounds", type=int, default=2, help="workloads of each trace (default: 2)")
    made.add_argument(
        "--waves",
        type=float,
        default=1.5,
        help="a workload's size: how often its long requests fill the KV cache (default: 1.5)",
    )
    made.add_argument(
        "--scale",
        type=float,
        default=16.0,
        help="the long requests' lengths and the KV slots are divided by it (default: 16); smaller "
        "is closer to the real traces, and a wave takes longer",
    )
    made.add_argument("--budget", type=float, default=570.0, help="seconds in all (default: 570)")
    made.add_argument("--began", type=float, help="when the call began (seconds since the epoch)")
    made.add_argument("--start-seconds", type=float, default=80.0, help="expected engine start")
    made.add_argument("--attention", default="fa3", help="attention backend (default: fa3)")
    made.add_argument(
        "--call", choices=CALLS, help="defaults of a call of at most 200 s (calls.py)"
    )
    made.add_argument("--model", choices=SHAPES, default="Llama-3.1-8B", help="the model's shape")
    made.add_argument("--spec", choices=("H100", "H200"), help="the card (default: the one here)")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    made.add_argument("--tiny", action="store_true", help="a tiny model and workload")
    made.add_argument(
        "--thorough", action="store_true", help="correctness of all engines, and in bfloat16"
    )
    made.add_argument("--again", action="store_true", help="run also what has a result already")
    made.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    return made


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags; what ``--call`` sets gives way to what is given."""
    made = parser()
    if (call := made.parse_args(argv).call) is not None:
        made.set_defaults(**COMMON, **CALLS[call])
    return made.parse_args(argv)


class Bench:
    """One call."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raises ValueError for an unknown stage or variant."""
        self.args = args
        self.out: Path = args.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.stages = args.only.split(",")
        if unknown := [stage for stage in self.stages if stage not in STAGES]:
            raise ValueError(f"--only: unknown {unknown[0]!r}; known: {', '.join(STAGES)}")
        self.variants = named(args.variants.split(","))
        self.budget = Budget(args.budget, args.began or time.time())
        self.gpu = _output(_GPU)
        self.spec: str = args.spec or spec_of(self.gpu)
        self.scale = Scale.of(args.model, self.spec, args.scale)
        self.errors: dict[str, str] = {}
        self._loads: list[tuple[Path, Load]] = []

    # --- stages ------------------------------------------------------------------------------

    def run(self) -> int:
        """All stages; 1 if something failed (what was measured is written all the same)."""
        for stage in self.stages:
            print(f"== {stage} ({self.budget.left:.0f} s left)", flush=True)
            getattr(self, stage)()
        self.summarise()
        return 1 if self.errors else 0

    def facts(self) -> None:
        """What this machine is."""
        facts: dict[str, Any] = {
            "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)),
            "arguments": {k: str(v) for k, v in vars(self.args).items()},
            "commit": _output(["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]),
            "gpu": self.gpu,
            "spec": self.spec,
            "model": self.args.model,
            "versions": _output([sys.executable, "-c", _VERSIONS]),
        }
        (self.out / "facts.json").write_text(json.dumps(facts, indent=1))
        print(facts["gpu"], facts["versions"], flush=True)

    def attention(self) -> None:
        """The attention kernel against float32."""
        fused = self.args.device != "cpu" and any(one.fused for one in self.variants)
        order = {"device": self.args.device, "fused": fused}
        seconds = EXPECTED["attention"] + (COMPILING if fused else 0)
        result = self._stage("attention", "check_attention.py", order, seconds)
        if result and not result.get("ok", False):
            print("   the attention kernel is WRONG: run again with --attention triton")
        if fused and not (result or {}).get("fused_ok", False):
            why = (result or {}).get("fused_error", "not checked")
            self.errors["blend-fused"] = f"the kernel for mixed steps: {why}"
            self.variants = [one for one in self.variants if not one.fused]

    def calibrate(self) -> None:
        """Rates of the device, and interference over divisions of its SMs."""
        order = {"device": self.args.device, "spec": self.spec, "small": self.args.tiny}
        result = self._stage("calibrate", "calibrate_overlap.py", order)
        if result and "calibration" in result:
            print("  ", {k: v for k, v in result["calibration"].items() if k != "source"})

    def correctness(self) -> None:
        """Greedy answers with and without overlap."""
        engines = correctness_engines(self.args.device, self.args.attention, self.spec)
        if not self.args.thorough:
            engines = {name: engines[name] for name in ("stock", "chunks")}
        if not self.budget.allows("correctness", EXPECTED["correctness"] * len(engines)):
            return
        with tempfile.TemporaryDirectory() as folder:
            model = random_model(Path(folder), layers=4, head_dim=64)
            order = {"model": str(model), "engines": engines}
            result = self._stage("correctness", "check_correctness.py", order)
        print("  ", json.dumps((result or {}).get("engines")), flush=True)

    def throughput(self) -> None:
        """The variants over the workloads, each variant in one process."""
        start = self.args.start_seconds
        for variant in self.variants:
            target = self.out / f"run-{variant.name}.json"
            if target.exists() and not self.args.again and "error" not in _read(target):
                continue
            if self.args.device == "cpu" and variant.flags.get("enable_pdmux"):
                continue  # SGLang's own loop needs CUDA streams
            files = self._fitting(variant, start)
            if not files:
                continue
            began = time.time()
            result = self._play(variant, files, target)
            if "error" not in result:  # all that is not a workload: the next one takes as long
                start = time.time() - began - sum(run["seconds"] for run in result["runs"])
            if result.get("runs"):
                speeds = [f"{run['tokens_per_second']:.0f}" for run in result["runs"]]
                print(f"   {variant.name}: {', '.join(speeds)} tokens/s", flush=True)

    def utilisation(self) -> None:
        """Compute and memory busy over time, for each variant's first run."""
        from sglang.srt.blendserve.cost.cost_model import CostModel
        from sglang.srt.blendserve.cost.device_spec import DeviceSpec
        from sglang.srt.blendserve.cost.model_spec import ModelSpec

        cost = CostModel(ModelSpec.named(self.args.model), DeviceSpec.named(self.spec))
        series = {}
        for name, result in self._results().items():
            steps = self.out / f"steps-{name}.csv"
            if not result.get("runs") or not steps.exists():
                continue
            run = result["runs"][0]
            rows = read_steps(steps, run["began"], run["seconds"])
            series[name] = busy(rows, run["began"], run["seconds"], cost)
        (self.out / "utilisation.json").write_text(json.dumps(series))
        if series and not draw(series, self.out / "utilisation.png"):
            print("   no matplotlib here: draw utilisation.json elsewhere")

    # --- parts -------------------------------------------------------------------------------

    def _stage(
        self, name: str, script: str, order: dict[str, Any], seconds: float | None = None
    ) -> dict[str, Any] | None:
        """Run a stage's script unless its result is there; None if there was no time for it."""
        target = self.out / f"{name}.json"
        if target.exists() and not self.args.again:
            return _read(target)
        if not self.budget.allows(name, EXPECTED[name] if seconds is None else seconds):
            return None
        result = child.run(script, order, self.out, name, self.budget.left)
        if "error" in result:
            self.errors[name] = result["error"]
            print(f"   {name} failed: {result['error']}", flush=True)
        return result

    def loads(self) -> list[tuple[Path, Load]]:
        """The workloads, all traces of a round before the next round."""
        if not self._loads:
            for seed in range(self.args.rounds):
                for trace in self.args.traces.split(","):
                    if self.args.tiny:
                        load = Load.tiny(trace, seed)
                    else:
                        load = Load.draw(trace, self.scale, self.args.waves, seed)
                    path = self.out / f"load-{trace}-{seed}.npz"
                    load.save(path)
                    self._loads.append((path, load))
        return self._loads

    def _fitting(self, variant: Variant, start: float) -> list[Path]:
        """As many of the workloads as there is time for, from the first."""
        seconds = [self._expected(load) for _, load in self.loads()]
        for count in range(len(seconds), 0, -1):
            need = start + sum(seconds[:count])
            if need <= self.budget.left:
                if count < len(seconds):
                    left = len(seconds) - count
                    self.budget.dropped.append(f"{variant.name}: its last {left} workloads")
                return [path for path, _ in self.loads()[:count]]
        self.budget.allows(variant.name, start + seconds[0])
        return []

    def _expected(self, load: Load) -> float:
        if self.args.tiny:
            return 10.0
        bounds = load.bounds(GUESS)
        return bounds["compute_seconds"] + bounds["memory_seconds"]

    def _play(self, variant: Variant, files: list[Path], target: Path) -> dict[str, Any]:
        args = self.args
        flags = engine_flags(
            variant, args.device, args.attention, self.loads()[0][1].scale.kv_slots
        )
        flags["model_path"] = str(
            config_folder(self.out / "model", "tiny" if args.tiny else args.model)
        )
        if variant.ours:
            flags["blendserve_trace"] = str(self.out / f"trace-{variant.name}.csv")
        order = {
            "engine": flags,
            "ours": variant.ours,
            "depth_first": variant.depth_first,
            "loads": [str(path) for path in files],
            "steps": str(self.out / f"steps-{variant.name}.csv"),
        }
        with Sampler(self.out / f"smi-{variant.name}.csv", args.device):
            result = child.run("engine_run.py", order, self.out, target.stem, self.budget.left)
        result |= {"ours": variant.ours, "what": variant.what}
        target.write_text(json.dumps(result, indent=1))
        if "error" in result:
            self.errors[variant.name] = result["error"]
            print(f"   {variant.name} failed: {result['error']}", flush=True)
        return result

    def _results(self) -> dict[str, dict[str, Any]]:
        """All variants that have run, in this call or an earlier one into the same folder."""
        found = {}
        for variant in VARIANTS:
            target = self.out / f"run-{variant.name}.json"
            if target.exists() and (result := _read(target)).get("runs"):
                found[variant.name] = result
        return found

    def summarise(self) -> None:
        """Write and print the table."""
        rows = summarise(self._results(), self._optimum())
        summary = {"rows": rows, "dropped": self.budget.dropped, "errors": self.errors}
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1))
        parts = [table(rows)] if rows else []
        parts += [f"Left out: {what}" for what in self.budget.dropped]
        parts += [f"Failed: {name}: {error}" for name, error in self.errors.items()]
        text = "\n\n".join(parts)
        (self.out / "summary.md").write_text(text + "\n")
        print(text, flush=True)

    def _optimum(self) -> dict[str, float] | None:
        """The practical optimum of each workload, with the constants measured here."""
        from sglang.srt.blendserve.simulator.calibration import Calibration

        path = self.out / "calibrate.json"
        if self.args.device == "cpu" or not path.exists():
            return None
        calibration = Calibration.load(path)
        return {
            f"{load.trace}/{load.seed}": load.bounds(calibration)["optimum_seconds"]
            for _, load in self.loads()
        }

    def expected(self) -> dict[str, float]:
        """What each stage and variant is expected to take, seconds."""
        each = self.args.start_seconds + sum(self._expected(load) for _, load in self.loads())
        seconds = {stage: EXPECTED[stage] for stage in self.stages if stage in EXPECTED}
        if "correctness" in seconds:
            seconds["correctness"] *= 2
        if "throughput" in self.stages:
            seconds |= {variant.name: each for variant in self.variants}
        return seconds

    def plan(self) -> None:
        """Print what a call would do."""
        for _, load in self.loads():
            print(json.dumps(load.describe() | load.bounds(GUESS), indent=1))
        seconds = self.expected()
        for name, expected in seconds.items():
            print(f"{name}: about {expected:.0f} s")
        print("variants:", ", ".join(variant.name for variant in self.variants))
        whole = sum(seconds.values()) + self.budget.reserve
        print(f"in all about {whole:.0f} s of {self.budget.limit:.0f} s, set-up apart")


def correctness_engines(device: str, attention: str, spec: str) -> dict[str, dict[str, Any]]:
    """Engines whose greedy answers are compared; the first is the reference."""
    common: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "log_level": "error",
        "max_total_tokens": 4000,
        "mem_fraction_static": 0.5,
    }
    exact: dict[str, Any] = common | {"dtype": "float32"}
    overlap = {
        "schedule_policy": "blendserve",
        "blendserve_overlap_chunk": 64,
        "blendserve_device": spec,
    }
    if device == "cpu":
        exact |= {"device": "cpu", "disable_cuda_graph": True}
        return {"stock": exact, "chunks": exact | overlap | {"blendserve_overlap": "chunks"}}
    exact |= {"attention_backend": "triton", "cuda_graph_bs_decode": [1, 8, 32, 64]}
    fast = exact | {"dtype": "bfloat16", "attention_backend": attention}
    return {
        "stock": exact,
        "chunks": exact | overlap | {"blendserve_overlap": "chunks"},
        "layers": exact | overlap | {"blendserve_overlap": "layers"},
        "stock, bfloat16": fast,
        "chunks, bfloat16": fast | overlap | {"blendserve_overlap": "chunks"},
    }


_GPU = [
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
    "--format=csv,noheader",
]

_VERSIONS = """
from importlib.metadata import PackageNotFoundError, version
for name in ("sglang", "torch", "triton", "sglang-kernel", "flashinfer-python", "transformers"):
    try: print(name, version(name), end="; ")
    except PackageNotFoundError: pass
"""


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except OSError as error:
        return f"not available: {error}"
    return (done.stdout or done.stderr).strip()


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def main(argv: list[str] | None = None) -> int:
    """See the module's docstring; 2 for a wrong argument."""
    args = parse(argv)
    try:
        bench = Bench(args)
    except ValueError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        bench.plan()
        return 0
    if args.device == "cpu":
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return bench.run()


if __name__ == "__main__":
    sys.exit(main())
