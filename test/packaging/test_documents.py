"""The batch *documents x questions* and its rounds, without an engine.

pytest test/packaging/test_documents.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.batch_file.validation import parse_lines

FOLDER = Path(__file__).parents[2] / "benchmark" / "documents"
sys.path.insert(0, str(FOLDER))

from document_cells import Cell, CellFile, Key, digests  # noqa: E402
from document_peers import Peer  # noqa: E402
from document_table import report, table  # noqa: E402
from make_documents import FULL, QUESTIONS, SMALL, batch_lines, document_texts  # noqa: E402

SETTING = {"requests": 300, "kv_tokens": 12_000, "runs": "fcfs", "flags": []}


def cell(round_: int, peer: str, seconds: float, answers: str = "", **other: object) -> Cell:
    """A cell of 3,000 tokens, half of its prompt tokens cached."""
    given = Cell(
        round=round_,
        order="questions",
        peer=peer,
        setting={**SETTING, "runs": peer},
        seconds=seconds,
        startup_seconds=30.0,
        completed=300,
        failed=0,
        input_tokens=2_000,
        output_tokens=1_000,
        cached_tokens=1_000,
        optimum=0.825,
        retractions=0,
        load=0.5,
        answers=answers,
    )
    return replace(given, **other)  # type: ignore[arg-type]


def prompt(line: dict[str, object]) -> str:
    """The text of a line's one message."""
    return line["body"]["messages"][0]["content"]  # type: ignore[index, no-any-return]


@pytest.mark.parametrize(("shape", "lines"), [(FULL, 300), (SMALL, 90)])
def test_every_document_meets_every_question_once(shape: object, lines: int) -> None:
    texts = document_texts(shape)  # type: ignore[arg-type]
    batch = batch_lines("questions", shape)  # type: ignore[arg-type]
    assert len(batch) == lines == len(texts) * len(QUESTIONS)
    assert Counter(map(prompt, batch)) == Counter(
        f"{text}\n\n{question}" for text in texts for question in QUESTIONS
    )
    assert len(set(texts)) == len(texts)


def test_documents_have_the_words_that_they_say() -> None:
    for shape in (FULL, SMALL):
        words = [len(text.split()) for text in document_texts(shape)]
        least, most = shape.words
        # A title of up to five words stands before each.
        assert all(least <= count <= most + 6 for count in words)
        assert abs(sum(words) / len(words) - (least + most) / 2) < 0.05 * most


def test_no_passage_is_in_two_documents() -> None:
    # Else documents would share more than their questions' words.
    starts = Counter(
        passage[:200]
        for text in document_texts()
        for passage in text.split("\n\n")[1:]
        if len(passage) >= 200
    )
    assert set(starts.values()) == {1}


def test_orders_hold_the_same_lines() -> None:
    by_question, by_document = batch_lines("questions"), batch_lines("documents")
    key = json.dumps
    assert sorted(map(key, by_question)) == sorted(map(key, by_document))
    assert [line["custom_id"] for line in by_question[:2]] == [
        "document-00-question-0",
        "document-01-question-0",
    ]
    assert [line["custom_id"] for line in by_document[:2]] == [
        "document-00-question-0",
        "document-00-question-1",
    ]
    with pytest.raises(ValueError, match="one of questions, documents"):
        batch_lines("shuffled")


def test_script_writes_the_same_valid_bytes_each_time(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        command = [sys.executable, str(FOLDER / "make_documents.py"), "-o", str(file)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert files[0].read_bytes() == files[1].read_bytes()
    with files[0].open("rb") as opened:
        assert Counter(type(line) for line in parse_lines(opened)) == {BatchLine: 300}


def test_cells_are_kept_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cells.jsonl"
    mine = cell(0, "fcfs", 10.0)
    CellFile(path).append(mine)
    again = CellFile(path)
    assert again.cells == [mine]
    assert again.has(Key(0, "questions", "fcfs"), mine.setting)
    assert not again.has(Key(1, "questions", "fcfs"), mine.setting)
    assert not again.has(Key(0, "documents", "fcfs"), mine.setting)
    assert not again.has(Key(0, "questions", "lpm"), {})


def test_a_cell_that_a_crash_cut_short_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    cells = CellFile(path)
    cells.append(cell(0, "fcfs", 10.0))
    cells.append(cell(0, "lpm", 9.0))
    path.write_bytes(path.read_bytes()[:-5])
    left = CellFile(path)
    assert [each.peer for each in left.cells] == ["fcfs"]
    left.append(cell(0, "lpm", 8.0))
    assert [each.seconds for each in CellFile(path).cells] == [10.0, 8.0]


def test_another_setting_and_a_foreign_line_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    cells = CellFile(path)
    cells.append(cell(0, "fcfs", 10.0))
    with pytest.raises(ValueError, match=r"choose another file.*"):
        cells.has(Key(1, "questions", "fcfs"), SETTING | {"kv_tokens": 24_000})
    path.write_text(path.read_text() + '{"round": 1}\n')
    with pytest.raises(ValueError, match="line 2 is not a cell"):
        CellFile(path)


def test_ratios_are_taken_within_a_round() -> None:
    cells = [
        cell(0, "fcfs", 100.0), cell(0, "blendserve", 20.0), cell(0, "vllm", 80.0),
        cell(1, "fcfs", 300.0), cell(1, "blendserve", 30.0),
        cell(2, "blendserve", 10.0),
    ]  # fmt: skip
    ours = report(cells)["questions"]["blendserve"]
    assert ours["rounds"] == 3
    assert ours["seconds"] == {"median": 20.0, "least": 10.0, "most": 30.0}
    assert ours["over_fcfs"] == pytest.approx({"median": 7.5, "least": 5.0, "most": 10.0})
    assert ours["over_vllm"] == pytest.approx({"median": 4.0, "least": 4.0, "most": 4.0})
    assert ours["sharing"] == {"median": 0.5, "least": 0.5, "most": 0.5}
    assert ours["tokens_per_second"]["median"] == 150.0
    assert report([cells[1]])["questions"]["blendserve"]["over_fcfs"] is None


def test_table_has_the_slowest_first_and_marks_what_is_missing() -> None:
    rows = table([cell(0, "blendserve", 20.0), cell(0, "fcfs", 100.0)], "questions").splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["peer", "---", "fcfs", "blendserve"]
    assert rows[3] == "| blendserve | 1 | 20.0 | 150 | 0.500 | 5.00 | - | 0 |"
    assert table([cell(0, "fcfs", 1.0)], "documents") == ""


def test_equal_answers_are_counted_by_custom_id() -> None:
    first = cell(0, "fcfs", 1.0, digests({"b": "two", "a": "one", "c": "three"}))
    other = cell(0, "lpm", 1.0, digests({"c": "three", "a": "one", "b": "other"}))
    assert first.equal_answers(first) == 3
    assert other.equal_answers(first) == 2


def test_peers_have_flags_of_their_own() -> None:
    assert Peer.of("lpm") == Peer("lpm", "lpm")
    assert Peer.of("mixed=fcfs,--enable-mixed-chunk") == Peer(
        "mixed", "fcfs", ("--enable-mixed-chunk",)
    )
    assert Peer.of("vllm-defaults") == Peer("vllm-defaults", "vllm")
    assert Peer.of("half=vllm,--dtype,float16") == Peer("half", "vllm", ("--dtype", "float16"))


def test_rounds_that_are_done_are_not_run_again(tmp_path: Path) -> None:
    # No engine starts: it would need the model folder, which is not there.
    kept = CellFile(tmp_path / "report.jsonl")
    for round_ in range(2):
        for peer in ("fcfs", "blendserve"):
            seconds = 100.0 if peer == "fcfs" else 25.0
            setting = {"requests": 90, "kv_tokens": 1_024, "runs": peer, "flags": []}
            kept.append(cell(round_, peer, seconds, setting=setting))
    command = [sys.executable, str(FOLDER / "run.py"), "--small", "--rounds", "2"]
    command += ["--peers", "fcfs", "blendserve", "vllm", "--json", str(tmp_path / "report.json")]
    command += ["--vllm", str(tmp_path / "none"), "--model-path", str(tmp_path / "no-model")]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "no vLLM in" in done.stderr
    assert "vllm_env.sh" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "| blendserve | 2 | 25.0 | 120 | 0.500 | 4.00 | - | 0 |" in done.stdout
    only_table = [*command[:2], "--table", str(tmp_path / "report.jsonl")]
    shown = subprocess.run(only_table, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith(shown.stdout)


def test_a_peer_ends_with_the_command(tmp_path: Path) -> None:
    # In vLLM's place something that would never end; it leaves its process id behind.
    stand_in = tmp_path / "env" / "bin" / "vllm"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(f"#!/bin/bash\necho $$ > {tmp_path}/pid.new\n"
                        f"mv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 600\n")  # fmt: skip
    stand_in.chmod(0o755)
    command = [sys.executable, str(FOLDER / "run.py"), "--small", "--peers", "vllm"]
    command += ["--vllm", str(tmp_path / "env"), "--model-path", str(tmp_path)]
    command += ["--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        try:
            wait_for((tmp_path / "pid").exists)
            peer = Path("/proc") / (tmp_path / "pid").read_text().strip()
            assert peer.exists()
            running.terminate()
            assert running.wait(timeout=60) == 143
            wait_for(lambda: not peer.exists())
        finally:
            running.kill()


def wait_for(met: Callable[[], bool]) -> None:
    """Wait up to two minutes for a condition."""
    deadline = time.monotonic() + 120
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)
