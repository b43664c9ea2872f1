"""A real engine that dies of one line, or hangs: `run` answers all the others.

The line is a harmless one that holds a marked text; the scheduler is asked to die of it.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from run_process import Batch, scheduler_of

from sglang.srt.blendserve.runtime.injected_fault import VARIABLE

pytestmark = pytest.mark.engine

LINES = 3
MARKED = 1


def batch_of(folder: Path, model: str, tokens: int) -> Batch:
    batch = Batch(folder, model)
    texts = [f"Count to {n}:" if n != MARKED else "A purple marker:" for n in range(LINES)]
    rows = [
        {
            "custom_id": f"{n}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True},
        }
        for n, text in enumerate(texts)
    ]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return batch


def test_the_line_becomes_an_error_and_the_others_are_answered(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(tmp_path, model, tokens=4)
    monkeypatch.setenv(VARIABLE, "kill:purple marker")
    assert batch.wait(batch.start()) == 0, batch.printed
    assert sorted(batch.names) == [f"{n}" for n in range(LINES) if n != MARKED]
    [error] = batch.results(batch.errors)
    assert (error["custom_id"], error["response"]) == (f"{MARKED}", None)
    assert error["error"]["code"] == "engine_died"
    assert error["error"]["line"] == MARKED + 1
    deaths = batch.printed.count("The engine died;")
    assert 2 <= deaths <= 3  # all three, one or two, one
    assert not (tmp_path / "out.jsonl.engine").exists()
    assert batch.summary["finished"]


def test_an_engine_that_hangs_counts_as_dead(tmp_path: Path, model: str) -> None:
    """Its scheduler is stopped, so that nothing answers and nothing ends."""
    batch = batch_of(tmp_path, model, tokens=60)
    process = batch.start("--watchdog-timeout", "10", "--max-running-requests", "1")
    batch.wait_for_results(process, 1)
    scheduler_of(process).send_signal(signal.SIGSTOP)
    assert batch.wait(process) == 0, batch.printed
    assert "has not answered for" in batch.printed
    assert sorted(batch.names) == [f"{n}" for n in range(LINES)]
