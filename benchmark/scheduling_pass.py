"""Processor time of a scheduling pass while thousands of requests wait, in the real engine.

    python benchmark/scheduling_pass.py --waiting 8192 --json pass.json

One engine a policy, one after the other, on a tiny model with random weights: requests wait in
SGLang's queue or in ours, and every pass in which at least ``--waiting`` of them do is timed inside
the scheduler's process (`time.thread_time`, so that other work on the machine does not count).
``pass`` is all of SGLang's choice of the next prefill batch, with what the policy adds to it;
``added`` is what the policy adds. A plan is made in another thread and is in neither. With stock
SGLang (``fcfs``, ``lpm``) our plugin is kept out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TIMES, LEAST = "BENCH_PASSES", "BENCH_WAITING"
"""Environment: file to write, ``[pass, added]`` in milliseconds a line; fewest waiting requests of
a pass that counts."""
OURS = "blendserve"


def main() -> int:
    """Measure each policy and print the table."""
    args = parse()
    if args.engine is not None:
        run_engine(args)
        return 0
    results = {policy: measure(policy, args) for policy in args.policies}
    print(f"\nSGLang {version('sglang')}, at least {args.waiting} requests waiting; milliseconds")
    print(f"{'':12}{'passes':>8}{'pass median':>13}{'P99':>9}{'added median':>14}{'P99':>9}")
    for policy, row in results.items():
        whole, added = row["pass"], row["added"]
        print(
            f"{policy:12}{row['passes']:>8}{whole['median']:>13.3f}{whole['p99']:>9.3f}"
            f"{added['median']:>14.3f}{added['p99']:>9.3f}"
        )
    if args.json is not None:
        args.json.write_text(
            json.dumps({"sglang": version("sglang"), "waiting": args.waiting, **results}, indent=1)
        )
    return 0


def parse() -> argparse.Namespace:
    """This command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", nargs="+", default=["fcfs", "lpm", OURS], metavar="POLICY")
    parser.add_argument("--waiting", type=int, default=8192, help="fewest waiting requests")
    parser.add_argument("--passes", type=int, default=1000, help="passes that count, at most")
    parser.add_argument("--running", type=int, default=64, help="most requests in a step")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(policy: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one engine in a process of its own; median and P99 of its passes, in milliseconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, str(HERE / "gpu"))
        from install_delta import write_metadata

        entry = {"sglang.srt.plugins": {"timer": "scheduling_pass:register"}}
        write_metadata(folder, "blendserve_timer", entry)
        times = folder / "times.jsonl"
        environment = {
            **os.environ,
            TIMES: str(times),
            LEAST: str(args.waiting),
            "SGLANG_PLUGINS": f"timer,{OURS}" if policy == OURS else "timer",
            "SGLANG_USE_CPU_ENGINE": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(folder), str(HERE), str(HERE / "gpu"))),
        }
        flags = ["--waiting", str(args.waiting), "--passes", str(args.passes)]
        flags += ["--running", str(args.running), "--engine", policy]
        command = [sys.executable, str(Path(__file__).resolve()), *flags]
        engine = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            lines: list[str] = []
            while len(lines) < args.passes and engine.poll() is None:
                time.sleep(1)
                lines = times.read_text().splitlines() if times.exists() else []
        finally:
            if engine.poll() is None:
                os.killpg(engine.pid, signal.SIGKILL)
            engine.wait()
    rows = np.array([json.loads(line) for line in lines[: args.passes]])
    return {"passes": len(rows), "pass": summary(rows[:, 0]), "added": summary(rows[:, 1])}


def summary(milliseconds: np.ndarray) -> dict[str, float]:
    """Median and 99th percentile."""
    median, p99 = np.percentile(milliseconds, (50, 99))
    return {"median": round(float(median), 4), "p99": round(float(p99), 4)}


# ---- the engine --------------------------------------------------------------------------------


def run_engine(args: argparse.Namespace) -> None:
    """Hand over more requests than are to wait."""
    from dummy_model import config_folder

    import sglang

    with tempfile.TemporaryDirectory() as folder:
        engine = sglang.Engine(
            model_path=str(config_folder(Path(folder), "tiny")),
            load_format="dummy",
            skip_tokenizer_init=True,
            schedule_policy=args.engine,
            device="cpu",
            dtype="float32",
            attention_backend="torch_native",
            sampling_backend="pytorch",
            grammar_backend="none",
            disable_cuda_graph=True,
            log_level="error",
            max_running_requests=args.running,
            max_total_tokens=65_536,
            chunked_prefill_size=1024,
        )
        try:
            prompts, parameters = workload(args.waiting + args.passes * 12)
            engine.generate(input_ids=prompts, sampling_params=parameters)
        finally:
            engine.shutdown()


def workload(count: int) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Prompts of 20 to 200 tokens, half of them with a shared beginning, and 1 to 8 new tokens."""
    rng = np.random.default_rng(0)
    shared = [rng.integers(3, 30_000, 64).tolist() for _ in range(50)]
    prompts, parameters = [], []
    for index in range(count):
        own = rng.integers(3, 30_000, rng.integers(20, 137)).tolist()
        prompts.append(shared[index % 50] + own if index % 2 else own)
        tokens = int(rng.integers(1, 9))
        parameters.append({"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True})
    return prompts, parameters


# ---- inside the scheduler's process --------------------------------------------------------------


def register() -> None:
    """Time SGLang's choice of the next prefill batch; SGLang calls this in every process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.managers.scheduler.Scheduler.get_new_batch_prefill"
    HookRegistry.register(target, Timer(), HookType.AROUND)


class Timer:
    """Writes one line for each pass in which enough requests wait."""

    def __init__(self) -> None:
        self.stock = 0.0
        self.file: Any = None
        self.least = int(os.environ[LEAST])

    def __call__(self, original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``Scheduler.get_new_batch_prefill``."""
        if self.file is None:
            self.begin(scheduler)
        pool = getattr(scheduler, "pool", None)
        waiting = len(scheduler.waiting_queue) + (0 if pool is None else len(pool))
        self.stock, began = 0.0, time.thread_time()
        result = original(scheduler, *args, **kwargs)
        took = time.thread_time() - began
        if waiting >= self.least:
            added = took - self.stock if pool is not None else 0.0
            self.file.write(f"[{1e3 * took:.4f}, {1e3 * added:.4f}]\n")
            self.file.flush()
        return result

    def begin(self, scheduler: Any) -> None:
        """Open the file, and time SGLang's part of a pass apart."""
        self.file = Path(os.environ[TIMES]).open("a")  # noqa: SIM115
        classes: Any = type(scheduler).__mro__
        stock = next(c for c in classes if c.__module__ == "sglang.srt.managers.scheduler")
        inner: Any = stock._get_new_batch_prefill_raw

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.stock += time.thread_time() - began

        stock._get_new_batch_prefill_raw = timed


if __name__ == "__main__":
    sys.exit(main())
