"""Rows in, rows out: `sglang_blendserve.batch` with a real engine, and on a real Ray.

pytest test/run/test_rows.py -m engine
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_process import ENGINE_FLAGS

import sglang_blendserve
from sglang.srt.blendserve.run.rows import BatchFailed

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


def rows() -> Iterator[dict[str, Any]]:
    for number in range(12):
        yield {"prompt": f"Number {number} is", "max_tokens": 3, "temperature": 0, "mine": number}
    yield {"max_tokens": 3, "mine": "nothing to answer"}
    yield {"prompt": "x" * 34_000_000, "mine": "too long"}
    for _ in range(2):
        same = {"prompt": "Same name", "max_tokens": 2, "temperature": 0}
        yield same | {"custom_id": "a", "mine": object}


def test_rows_come_back_with_what_was_in_them(tiny_model: Path) -> None:
    given = [*rows()]
    got = [*sglang_blendserve.batch(rows(), str(tiny_model), flags=ENGINE_FLAGS)]
    assert len(got) == len(given)
    by_prompt = {row["mine"]: row for row in got if row["mine"] is not object}
    for row in given[:12]:
        answered = by_prompt[row["mine"]]
        assert {name: answered[name] for name in row} == row
        assert (answered["status_code"], answered["completion_tokens"]) == (200, 3)
        assert answered["text"]
    refused = by_prompt["nothing to answer"]
    assert refused["text"] is None
    assert refused["error_code"] == "missing_required_parameter"
    assert by_prompt["too long"]["error_code"] == "line_too_long"
    both = [row for row in got if row["mine"] is object]  # names are the caller's own
    assert [row["custom_id"] for row in both] == ["a", "a"]
    assert both[0]["text"] == both[1]["text"]


def test_no_rows_need_no_engine() -> None:
    assert [*sglang_blendserve.batch([], "no such model")] == []


def test_a_column_that_the_answer_has_too_is_refused() -> None:
    rows = [{"prompt": "x", "text": "mine"}]
    with pytest.raises(ValueError, match="row 0 has a column text, as its answer will have"):
        next(sglang_blendserve.batch(rows, "no such model"))


def test_the_run_ends_with_who_started_it(tmp_path: Path, tiny_model: Path) -> None:
    """Killed, it tells nobody."""
    script = (
        "import sglang_blendserve as b\n"
        "many = ({'prompt': str(n), 'max_tokens': 200, 'ignore_eos': True} for n in range(400))\n"
        f"flags = {ENGINE_FLAGS!r}\n"
        f"for row in b.batch(many, {str(tiny_model)!r}, flags=flags): print('row', flush=True)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline()
    family = psutil.Process(caller.pid).children(recursive=True)
    assert len(family) >= 3
    caller.kill()
    caller.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left


def test_what_does_not_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BatchFailed, match=r"1 rows were not answered: .* status 1"):
        next(sglang_blendserve.batch([{"prompt": "x"}], f"{tmp_path}/none"))


def test_who_stops_early_ends_the_engine(tiny_model: Path) -> None:
    before = psutil.Process().children(recursive=True)  # servers that other tests share
    many = ({"prompt": f"{n}", "max_tokens": 200, "ignore_eos": True} for n in range(400))
    answers = sglang_blendserve.batch(many, str(tiny_model), flags=ENGINE_FLAGS)
    next(answers)
    children = [one for one in psutil.Process().children(recursive=True) if one not in before]
    assert any("scheduler" in " ".join(child.cmdline()) for child in children)
    answers.close()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not [one for one in left if "resource_tracker" not in " ".join(one.cmdline())]


def test_a_stage_of_ray_data(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # it listens on the loopback
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=3, include_dashboard=False, logging_level="warning")
    try:
        given = [{"prompt": f"Number {n} is", "max_tokens": 3, "key": n} for n in range(12)]
        answered = sglang_blendserve.batch(
            ray.data.from_items(given), str(tiny_model), engines=2, flags=ENGINE_FLAGS
        )
        got = answered.filter(lambda row: row["status_code"] == 200).take_all()
        assert sorted(row["key"] for row in got) == [*range(12)]
        assert all(row["completion_tokens"] == 3 for row in got)
    finally:
        ray.shutdown()
