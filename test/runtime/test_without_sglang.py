"""The runtime's parts stand alone: SGLang's scheduler is not imported with them.

pytest test/runtime/test_without_sglang.py
"""

from __future__ import annotations

import subprocess
import sys

PARTS = (
    "compat",
    "device",
    "engine_policy",
    "engine_pool",
    "engine_state",
    "offline_request",
    "online",
    "overlap.division",
    "overlap.lane_trace",
    "overlap.lanes",
    "overlap.sm_split",
    "overlap.whole_chunks",
    "overlap.work",
    "pool_state",
    "ranks",
    "receiver",
    "record.metrics",
    "record.row_file",
    "record.step_record",
    "record.step_sinks",
    "view",
)

SCRIPT = """
import importlib, sys
for part in sys.argv[1:]:
    importlib.import_module(f"sglang.srt.blendserve.runtime.{part}")
    late = [name for name in sys.modules if name.startswith("sglang.srt.managers")]
    assert not late, f"{part} imports {late}"
"""


def test_no_part_imports_sglangs_scheduler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *PARTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
