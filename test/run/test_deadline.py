"""``--stop-after``.

pytest test/run/test_deadline.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from run_process import Batch

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.run.deadline import Deadline, TimeIsUp, duration
from sglang.srt.blendserve.run.failure import TIME_IS_UP
from sglang.srt.blendserve.run.offline_engine import OfflineEngine


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("50m", 3000), ("2h", 7200), ("1h30m", 5400), ("1d1s", 86_401)],
)
def test_times(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0h", "-5", "1.5h", "30m1h", "1 h", "2 hours", "h", 30 * "9"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        duration(text)


def test_work_that_asks_nobody_is_interrupted_at_the_deadline() -> None:
    before = signal.getsignal(signal.SIGALRM)
    deadline = Deadline(time.time() - psutil.Process().create_time() + 0.1)
    with pytest.raises(TimeIsUp), deadline.interrupting():
        time.sleep(60)
    with pytest.raises(TimeIsUp), deadline.interrupting():  # it has passed before
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_without_a_limit_nothing_is_interrupted() -> None:
    deadline = Deadline(None)
    with deadline.interrupting():
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert deadline.left is None


def test_a_running_engine_is_stopped_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SGLang: what the loop does at the deadline is what it does on Ctrl-C."""
    manager = SimpleNamespace(auto_create_handle_loop=lambda: None, asyncio_tasks=set())
    engine = object.__new__(OfflineEngine)
    engine._engine = SimpleNamespace(tokenizer_manager=manager, loop=asyncio.new_event_loop())
    engine._deadline = Deadline(time.time() - psutil.Process().create_time() + 0.2)

    async def watch(_: Stop) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(engine, "_watch", watch)
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    try:
        engine.answer(stop.wait(), stop)
    finally:
        engine._engine.loop.remove_signal_handler(signal.SIGINT)
        engine._engine.loop.close()
        signal.signal(signal.SIGINT, before)
    assert stop.reason == "time is up"


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
