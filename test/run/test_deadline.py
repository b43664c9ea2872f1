"""``--stop-after``.

pytest test/run/test_deadline.py
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from run_process import Batch

from sglang.srt.blendserve.run.deadline import Deadline, duration
from sglang.srt.blendserve.run.failure import TIME_IS_UP


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("50m", 3000), ("2h", 7200), ("1h30m", 5400), ("1d1s", 86_401)],
)
def test_times(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "-5", "1.5h", "30m1h", "1 h", "2 hours", "h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        duration(text)


def test_work_that_asks_nobody_is_interrupted_at_the_deadline() -> None:
    before = signal.getsignal(signal.SIGALRM)
    deadline = Deadline(time.time() - psutil.Process().create_time() + 0.1)
    with pytest.raises(KeyboardInterrupt), deadline.interrupting():
        time.sleep(60)
    assert deadline.passed
    with pytest.raises(KeyboardInterrupt), deadline.interrupting():  # it has passed before
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_without_a_limit_nothing_is_interrupted() -> None:
    deadline = Deadline(None)
    with deadline.interrupting():
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert deadline.left is None
    assert not deadline.passed


@pytest.mark.engine
def test_a_run_whose_time_is_up_says_so(tmp_path: Path, model: str) -> None:
    """Loading modules takes longer than this run has."""
    batch = Batch(tmp_path, model)
    body = {"prompt": "One two", "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    process = batch.start("--stop-after", "1s")
    assert batch.wait(process) == TIME_IS_UP, batch.printed
    assert "time of --stop-after is up" in batch.printed
    assert "Traceback" not in batch.printed
