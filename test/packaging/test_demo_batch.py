"""The demo batch: the committed file is what its script writes, and it is a mixed batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.batch_file.validation import parse_lines

DEMO = Path(__file__).parents[2] / "benchmark" / "demo"


def test_script_writes_the_committed_bytes(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO / "make_batch.py"), "-o", str(tmp_path / "demo.jsonl")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "demo.jsonl").read_bytes() == (DEMO / "demo.jsonl").read_bytes()


def test_every_line_is_a_valid_request() -> None:
    with (DEMO / "demo.jsonl").open("rb") as file:
        lines = list(parse_lines(file))
    assert {type(line) for line in lines} == {BatchLine}
    assert len(lines) >= 200


def test_kinds_are_mixed_throughout_the_file() -> None:
    entries = [json.loads(line) for line in (DEMO / "demo.jsonl").read_text().splitlines()]
    kinds = [entry["custom_id"].split("-")[0] for entry in entries]
    half = len(kinds) // 2
    for part in (kinds[:half], kinds[half:]):
        counts = Counter(part)
        assert set(counts) == {"mmlu", "gsm8k", "writing"}
        assert counts["writing"] >= len(part) // 30
    assert {entry["url"] for entry in entries} == {"/v1/chat/completions", "/v1/completions"}
    assert {entry["body"]["temperature"] for entry in entries} == {0}
