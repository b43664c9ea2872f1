"""What the planner's process takes for a million lines: memory, processor time, the first lines.

    python benchmark/dispatch/million.py --lines 1000000 --tokens 400 --json out.json

A request store of synthetic token ids is written first (1.6 GB for a million lines of 400 tokens),
then the real planner's process takes it up, plans it, and hands lines over as an engine with a
window would ask for them. Half of the lines begin with a prefix that 100 of them share. Seconds of
processor time are the planner's own, all its threads; memory is what ``/proc`` says of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.dispatch.messages import News
from sglang.srt.blendserve.dispatch.planner import PlannerSettings
from sglang.srt.blendserve.dispatch.planner_client import PlannerClient
from sglang.srt.blendserve.requests.columns import COLUMNS, ColumnWriter, Flag

CHUNK = 20_000
GROUP = 100
SECONDS = 1800
VOCABULARY = 128_000
SETTINGS = PlannerSettings(
    CostModel(ModelSpec.named("Llama-3-8B"), DeviceSpec.named("A100-80G")), 400_000, 131_072
)


def main() -> int:
    """Measure and print; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=400, help="of a line")
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--folder", type=Path, help="for the store (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_store(Path(folder), args.lines, args.tokens)
        found = measure(Path(folder), args.lines, args.window)
    found = {"lines": args.lines, "tokens": args.tokens, "window": args.window, **found}
    print(json.dumps(found, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def write_store(folder: Path, lines: int, tokens: int) -> None:
    """Write a store of ``lines`` rows of ``tokens`` token ids: long prompts with short answers
    first, then short caps with long ones, as in a file sorted by source."""
    rng = np.random.default_rng(0)
    writer = ColumnWriter(folder)
    try:
        for start in range(0, lines, CHUNK):
            rows = min(CHUNK, lines - start)
            ids = rng.integers(0, VOCABULARY, (rows, tokens), dtype=np.int32)
            prefixes = rng.integers(0, VOCABULARY, (rows // GROUP + 1, tokens // 2), dtype=np.int32)
            shared = np.arange(0, rows, 2)
            ids[shared, : tokens // 2] = prefixes[shared // GROUP]
            columns = {
                name: np.zeros(rows, dtype=dtype)
                for name, dtype in COLUMNS.items()
                if name != "offset"
            }
            number = np.arange(start, start + rows)
            columns["length"][:] = tokens
            columns["cap"][:] = np.where(number < lines // 2, 32, 4096)
            columns["known"][:] = -1
            columns["choices"][:] = 1
            columns["line"][:] = number + 1
            columns["byte_length"][:] = 4 * tokens
            columns["byte_offset"][:] = number * 4 * tokens
            columns["flags"][:] = Flag.EXACT
            writer.append(columns, ids.reshape(-1))
    finally:
        writer.close()


def measure(folder: Path, lines: int, window: int) -> dict[str, Any]:
    """Let a planner's process plan the store in ``folder``, and hand over twice a window."""
    with PlannerClient(SETTINGS) as planner:
        began = time.monotonic()
        planner.open("job", folder, np.zeros(lines + 1, dtype=np.bool_))
        process = psutil.Process(planner.process_id)
        first = taken_up = planned = None
        cpu_before_plan = 0.0
        memory = Memory(process)
        answer = 0.0
        while planned is None:
            if time.monotonic() - began > SECONDS:
                raise TimeoutError(f"no plan over {lines} lines in {SECONDS} s")
            asked = time.monotonic()
            taken = planner.take("job", 0 if first else 64, News([], [], True))
            now = time.monotonic()
            answer = max(answer, now - asked)
            if taken.places and first is None:
                first = now - began
            if taken.prepared == lines and taken_up is None:
                taken_up, cpu_before_plan = now - began, _cpu(process)
            if taken.planned == lines:
                planned = now - began
            time.sleep(0.05)
        cpu = _cpu(process)
        asked, seconds, seen = time.monotonic(), 0.0, 0
        while seen < 2 * window:
            places = planner.take("job", 64, News([], [], True)).places
            seen += len(places)
        seconds = time.monotonic() - asked
        peak = memory.end()
    return {
        "first_lines_seconds": first,
        "taken_up_seconds": taken_up,
        "planned_seconds": planned,
        "cpu_seconds": cpu,
        "cpu_seconds_after_taking_up": cpu - cpu_before_plan,
        "longest_answer_seconds": answer,
        "lines_handed_over_per_second": seen / seconds,
        "anonymous_peak_mib": peak["anonymous"] >> 20,
        "anonymous_after_mib": peak["after"] >> 20,
    }


class Memory:
    """Samples the anonymous memory of a process ten times a second."""

    def __init__(self, process: psutil.Process) -> None:
        self._status = Path(f"/proc/{process.pid}/status")
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self) -> dict[str, int]:
        """Return the peak, and what it is now, bytes."""
        self._ended.set()
        self._thread.join()
        return {"anonymous": self._peak, "after": self._now()}

    def _now(self) -> int:
        for line in self._status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
        return 0

    def _sample(self) -> None:
        while not self._ended.wait(0.1):
            self._peak = max(self._peak, self._now())


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    raise SystemExit(main())
