"""The input of a run: plain or compressed, from a file or a pipe, read twice and the same twice."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.srt.blendserve.answering.line_source import SizedLine
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.source import BatchSource

DATA = (
    b"\n".join(
        json.dumps(
            {
                "custom_id": str(i),
                "method": "POST",
                "url": "/v1/completions",
                "body": {"prompt": "x"},
            }
        ).encode()
        for i in range(50)
    )
    + b"\nnonsense\n\n"
)


def none(_: object) -> bool:
    return False


def read(source: BatchSource) -> list[SizedLine]:
    with source.lines(none) as lines:
        return [line for group in iter(lines.next_lines, []) for line in group]


def test_plain_and_compressed_are_the_same_input(tmp_path: Path) -> None:
    scans, lines = [], []
    for name, data in (("in.jsonl", DATA), ("in.jsonl.gz", gzip.compress(DATA)), ("x", DATA)):
        path = tmp_path / name
        path.write_bytes(data)
        with BatchSource(str(path), Rules()) as source:
            scans.append((source.scan(none), source.digest))
            lines.append(read(source))
            assert lines[-1] == read(source)
    assert scans[0][0][:3] == (51, 1, 50)
    assert scans[0] == scans[1] == scans[2]
    assert sum(line.size for line in lines[0]) == len(DATA) - 1  # the last line is blank
    assert lines[0] == lines[1] == lines[2]


def test_standard_input_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        buffer = io.BytesIO(gzip.compress(DATA))

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Pipe())
    with BatchSource("-", Rules()) as source:
        assert source.scan(none).todo == 50
        assert len(read(source)) == 51


def test_an_input_that_changes_between_the_two_readings(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(DATA)
    with BatchSource(str(path), Rules()) as source:
        source.scan(none)
        path.write_bytes(DATA.replace(b'"x"', b'"y"', 1))
        with pytest.raises(RunFailure, match="changed"):
            read(source)


def test_what_is_left_of_a_resumed_run_comes_from_the_first_reading(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(DATA)
    with BatchSource(str(path), Rules()) as source:
        found = source.scan(lambda line: line.line <= 20 or line.line == 51)
        assert (found.total, found.bad, found.todo) == (51, 1, 30)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "no request"), (b"\n \n", "no request"), (gzip.compress(DATA)[:-9], "cannot be read")],
)
def test_an_input_that_is_no_batch(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    with BatchSource(str(path), Rules()) as source, pytest.raises(RunFailure, match=reason):
        source.scan(none)


@pytest.mark.parametrize("name", ["missing.jsonl", ".", "/dev/null"])
def test_an_input_that_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFailure, match=r"Cannot read|not a file|is a folder without"):
        BatchSource(str(tmp_path / name), Rules())


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_what_other_processes_read_is_the_file_that_was_opened(tmp_path: Path, name: str) -> None:
    """Editors put another file in the place of the one that they change."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(DATA) if name.endswith("gz") else DATA)
    with BatchSource(str(path), Rules()) as source:
        source.scan(none)
        plain = source.plain()
        other = tmp_path / "other"
        other.write_bytes(b"other")
        other.rename(path)
        command = [sys.executable, "-c", "import sys; print(len(open(sys.argv[1]).read()))"]
        printed = subprocess.run([*command, str(plain)], capture_output=True, check=True).stdout
        assert int(printed) == len(DATA)
        path.unlink()
        assert plain.read_bytes() == DATA
        assert source.plain() == plain
        assert len(read(source)) == 51


def test_an_input_that_cannot_be_unpacked_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(DATA))
    with BatchSource(str(path), Rules()) as source:
        source.scan(none)
        with path.open("r+b") as file:
            file.truncate(40)
        for _ in range(2):
            with pytest.raises(EOFError):
                source.plain()
