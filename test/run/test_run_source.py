"""The input of a run: plain or compressed, from a file or a pipe, read twice and the same twice."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

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


def test_plain_and_compressed_are_the_same_input(tmp_path: Path) -> None:
    scans, lines = [], []
    for name, data in (("in.jsonl", DATA), ("in.jsonl.gz", gzip.compress(DATA)), ("x", DATA)):
        path = tmp_path / name
        path.write_bytes(data)
        with BatchSource(str(path), Rules()) as source:
            scans.append(source.scan())
            lines.append(list(source.lines()))
            assert lines[-1] == list(source.lines())
    assert (scans[0].requests, scans[0].refused) == (50, 1)
    assert scans[0] == scans[1] == scans[2]
    assert lines[0] == lines[1] == lines[2]


def test_standard_input_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        buffer = io.BytesIO(gzip.compress(DATA))

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Pipe())
    with BatchSource("-", Rules()) as source:
        assert source.scan().requests == 50
        assert len(list(source.lines())) == 51


def test_an_input_that_changes_between_the_two_readings(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(DATA)
    with BatchSource(str(path), Rules()) as source:
        source.scan()
        path.write_bytes(DATA.replace(b'"x"', b'"y"', 1))
        with pytest.raises(RunFailure, match="changed"):
            list(source.lines())


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "no request"), (b"\n \n", "no request"), (gzip.compress(DATA)[:-9], "cannot be read")],
)
def test_an_input_that_is_no_batch(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    with BatchSource(str(path), Rules()) as source, pytest.raises(RunFailure, match=reason):
        source.scan()


@pytest.mark.parametrize("name", ["missing.jsonl", ".", "/dev/null"])
def test_an_input_that_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFailure, match=r"Cannot read|not a file"):
        BatchSource(str(tmp_path / name), Rules())
