"""A large file through `run`: time to the first forward pass, and memory, by size.

    python benchmark/dispatch/million_run.py --lines 1000 100000 1000000 --json out.json
    python benchmark/dispatch/million_run.py --lines 1000000 --whole --json out.json

The real engine with a tiny model (random weights) on a CPU, prompts of about 400 tokens of which
half are shared. A run is stopped some time after its first answers, or with ``--whole`` when all
lines are planned. ``first_forward_seconds`` is that of `run --summary`: from the ready engine to
the first pass. Memory is anonymous, in MiB: the peak and the median of `run`'s own processes
(itself, its planner, the workers that tokenize), and the scheduler's when the first answers are
there, at its highest afterwards, and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "test" / "helpers"))
from tiny_model import write_tiny_model

from sglang.srt.blendserve.fetch_model.command import fetch

WORDS = 340
FLAGS = ("--max-total-tokens", "60000", "--random-seed", "1")


def main() -> int:
    """Measure and print; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--lines", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=45, help="after the first answers")
    parser.add_argument("--whole", action="store_true", help="until all lines are planned")
    parser.add_argument("--most", type=float, default=3600, help="seconds a run may take")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "model", Path(fetch("smollm2")))
        for lines in args.lines:
            source = Path(folder) / "in.jsonl"
            write(source, lines)
            found.append({"lines": lines, **run(Path(folder), source, model, args)})
            print(json.dumps(found[-1]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def write(path: Path, lines: int) -> None:
    """Write a batch file."""
    draw = random.Random(0)
    words = (Path(__file__).parents[1] / "demo" / "writing.txt").read_text().split()
    shared = [" ".join(draw.choices(words, k=WORDS // 4)) for _ in range(50)]
    with path.open("w") as file:
        for number in range(lines):
            own = " ".join(draw.choices(words, k=WORDS // 4))
            prompt = f"{shared[number * 50 // lines]} {own}"
            body = {"prompt": prompt, "max_tokens": 32, "temperature": 0}
            line = {"method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps({"custom_id": f"r{number}", **line}) + "\n")


def run(folder: Path, source: Path, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run the file, watch it, and stop it."""
    output, summary, printed = folder / "out.jsonl", folder / "summary.json", folder / "printed"
    command = [sys.executable, "-m", "sglang.srt.blendserve.cli", "run", "--overwrite"]
    command += ["-i", str(source), "-o", str(output), "--model-path", str(model), *FLAGS]
    summary.unlink(missing_ok=True)
    output.unlink(missing_ok=True)
    began, first = time.monotonic(), None
    memory = Memory()
    with printed.open("wb") as target:
        process = subprocess.Popen(
            [*command, "--summary", str(summary)], stdout=target, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            time.sleep(0.5)
            now = time.monotonic()
            memory.look(process.pid)
            if first is None and output.exists() and output.stat().st_size:
                first = now
                memory.mark()
            enough = first is not None and now - first > args.seconds
            if args.whole:
                enough = enough and planned(printed) >= last_line(source)
            if enough or now - began > args.most:
                process.send_signal(2)
                process.wait(timeout=120)
    figures = json.loads(summary.read_text())
    names = ("requests", "completed", "first_forward_seconds", "prepare_seconds")
    return {
        **{name: figures[name] for name in names},
        "first_answer_seconds": None if first is None else first - began,
        "startup_seconds": figures["startup_seconds"],
        "seconds": time.monotonic() - began,
        "planned": planned(printed),
        **memory.figures(),
    }


def planned(printed: Path) -> int:
    """How many lines the progress says are planned."""
    found = re.findall(rb"([\d,]+) planned", printed.read_bytes()[-4000:])
    return int(found[-1].replace(b",", b"")) if found else 0


def last_line(source: Path) -> int:
    """How many lines are planned when all are, but for those that were in the engine before."""
    with source.open("rb") as file:
        size = len(file.readline())
    return int(0.9 * source.stat().st_size / size)


class Memory:
    """Anonymous memory of a run's processes, looked at again and again."""

    def __init__(self) -> None:
        self._looks: list[dict[int, float]] = []
        self._engine: dict[int, str] = {}
        self._mark = 0

    def look(self, pid: int) -> None:
        """Note what each process has now."""
        look: dict[int, float] = {}
        try:
            processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return
        for process in processes:
            try:
                name = process.name() + " ".join(process.cmdline())
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue
            for kind in ("scheduler", "detokenizer"):  # they are called so when they have started
                if f"sglang::{kind}" in name:
                    self._engine[process.pid] = kind
            found = re.search(r"RssAnon:\s+(\d+)", status)
            look[process.pid] = int(found[1]) / 1024 if found else 0.0
        self._looks.append(look)

    def mark(self) -> None:
        """Remember this moment: the first answers are there."""
        self._mark = len(self._looks) - 1

    def figures(self) -> dict[str, float]:
        """Return MiB: of the run's own processes, and of the scheduler."""
        own = [self._sum(look, None) for look in self._looks]
        scheduler = [self._sum(look, "scheduler") for look in self._looks]
        at_end = next((one for one in reversed(scheduler) if one), 0.0)
        return {
            "own_peak_mib": max(own),
            "own_median_mib": sorted(own)[len(own) // 2],
            "scheduler_first_mib": scheduler[self._mark],
            "scheduler_peak_after_mib": max(scheduler[self._mark :]),
            "scheduler_last_mib": at_end,
        }

    def _sum(self, look: dict[int, float], kind: str | None) -> float:
        return sum(mib for pid, mib in look.items() if self._engine.get(pid) == kind)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
