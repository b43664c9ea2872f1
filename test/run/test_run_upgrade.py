"""A run that version 0.1.0 began and was killed in goes on with ``--resume``.

    pytest test/run/test_run_upgrade.py

The files are real ones of 0.1.0 (test/fixtures/0.1.0/README.md says how they came about). They must
open after this and every later issue: no change of the journal's format may break these tests, and
nobody makes the fixture anew. Only the command line is used, so that they outlive the modules.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from run_process import Batch

from sglang.srt.blendserve.cli import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "0.1.0" / "run"
ANSWERED, TO_ANSWER = (
    ["chat-1", "text-2", "chat-4", "chat-7"],
    ["long-8", "chat-9", "text-11", "chat-12"],
)
REFUSED, REPEATED = [3, 5, 6], 10
"""Input lines with an error already, and the one that is found out only now."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the working directory."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*more: str, model: str = "SmolLM2-135M-Instruct") -> list[str]:
    return ["run", "-i", "in.jsonl", "-o", "out.jsonl", "--model-path", model, *more]


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if "out." in path.name}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sidecar(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out.jsonl.run.json").read_text())
    return found


def check_whole(folder: Path, before: dict[str, bytes]) -> None:
    """Every input line has one result, and those that were there stand as they stood."""
    after = state(folder)
    for name in ("out.jsonl", "out.errors.jsonl"):
        assert after[name].startswith(before[name])
    assert Counter(r["custom_id"] for r in lines(folder / "out.jsonl")) == Counter(
        ANSWERED + TO_ANSWER
    )
    errors = lines(folder / "out.errors.jsonl")
    in_body = [(r["error"] or r["response"]["body"]["error"])["line"] for r in errors]
    assert sorted(in_body) == [*REFUSED, REPEATED]
    job_and_input = {"job": None, "input_digest": None}
    earlier = json.loads(before["out.jsonl.run.json"])
    assert job_and_input | {k: sidecar(folder)[k] for k in job_and_input} == {
        k: earlier[k] for k in job_and_input
    }


def answer_by_hand(folder: Path) -> None:
    """What 0.1.0 would have written for the lines that it did not come to."""
    form = lines(folder / "out.jsonl")[0]
    with open(folder / "out.jsonl", "a") as output:
        for name in TO_ANSWER:
            output.write(json.dumps(form | {"custom_id": name, "id": f"by hand {name}"}) + "\n")


def test_its_results_count_and_what_is_still_refused_is_added(folder: Path) -> None:
    """All answers are there: no engine starts, and the one line without a result gets its own."""
    answer_by_hand(folder)
    before = state(folder)
    assert main(command("--resume")) == 0
    check_whole(folder, before)
    assert sidecar(folder)["model"] == "SmolLM2-135M-Instruct"


def test_another_model_is_told_and_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_by_hand(folder)
    before = state(folder)
    assert main(command("--resume", model="another/model")) == 0
    check_whole(folder, before)
    assert sidecar(folder)["model"] == "another/model"
    told = capsys.readouterr()
    assert "SmolLM2-135M-Instruct" in told.err + told.out


@pytest.mark.parametrize(
    ("flag", "changed", "reason"),
    [(None, b"", "--resume"), ("--resume", b" ", "another input")],
    ids=["not asked to", "another input"],
)
def test_it_is_not_touched_without_leave(
    folder: Path,
    flag: str | None,
    changed: bytes,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = state(folder)
    with open(folder / "in.jsonl", "ab") as file:
        file.write(changed)
    assert main(command(*[flag] if flag else [])) != 0
    assert state(folder) == before
    assert reason in capsys.readouterr().err


@pytest.mark.engine
def test_what_is_left_is_answered_and_nothing_twice(folder: Path, model_path: Path) -> None:
    """One answer is cut short in its file, as a crash can leave it, and so is to be made again."""
    output = folder / "out.jsonl"
    output.write_bytes(output.read_bytes()[:-40])
    whole = output.read_bytes().rpartition(b"\n")[0] + b"\n"
    before = state(folder) | {"out.jsonl": whole}
    batch = Batch(folder, str(model_path))
    assert batch.wait(batch.start("--resume")) == 0, batch.printed
    check_whole(folder, before)
    job = json.loads(before["out.jsonl.run.json"])["job"]
    for result in lines(output):
        assert result["response"]["request_id"].startswith(f"blendserve-{job}-")
