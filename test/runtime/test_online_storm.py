"""Chats that come and go at random beside a batch leave nothing behind.

    pytest test/runtime/test_online_storm.py -m engine

A small form of benchmark/online/storm.py, which says what is checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmark" / "online" / "storm.py"


@pytest.mark.engine
def test_nothing_is_lost_in_a_storm_of_arrivals_and_aborts(tmp_path: Path) -> None:
    target = tmp_path / "storm.json"
    given = ["--chats", "400", "--offline", "200", "--json", str(target)]
    environment = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *given], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(target.read_text())
    assert found["wrong"] == []
    assert found["answered"] + found["aborted"] >= 600
    assert min(found["aborted"], found["parked_in_all"]) > 50
    assert found["retractions"] > 0
