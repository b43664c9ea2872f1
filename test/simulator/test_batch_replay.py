"""A batch that has been answered as a workload, and its way through the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sglang.srt.blendserve.cli import main
from sglang.srt.blendserve.fetch_model.models import model_path
from sglang.srt.blendserve.simulator.batch_replay import BatchReplay
from sglang.srt.blendserve.simulator.length_traces import WorkloadError


def tokens(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def replay(*prompts: np.ndarray) -> BatchReplay:
    n = len(prompts)
    return BatchReplay.of("given", list(prompts), np.full(n, 3), np.full(n, 8))


def test_shares_what_the_prompts_share() -> None:
    # In depth-first order: 1 2 3 4 (4 of its own), 1 2 3 5 (1), 1 9 (1), 7 (1), 7 (its last one).
    workload = replay(tokens(1, 2, 3, 4), tokens(7), tokens(1, 9), tokens(1, 2, 3, 5), tokens(7))
    assert int(workload.computed_tokens().sum()) == 4 + 1 + 1 + 1 + 1
    assert workload.shared_tokens == 12 - 8
    assert workload.sharing == pytest.approx(4 / 12)


def test_keeps_prompts_and_arrival() -> None:
    given = [tokens(5, 6), tokens(1)]
    workload = replay(*given)
    assert all((a == b).all() for a, b in zip(workload.prompts(), given, strict=True))
    assert workload.replica(1) is workload
    with pytest.raises(WorkloadError, match="scale 1"):
        workload.replica(8)


@pytest.fixture
def batch(tmp_path: Path) -> tuple[Path, Path]:
    """Six completion lines and the answers to five of them."""
    lines, answers = [], []
    for i in range(6):
        body = {"model": "m", "prompt": [*range(100, 140), 200 + i], "max_tokens": 32}
        lines.append({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions",
                      "body": body})  # fmt: skip
        usage = {"prompt_tokens": 41, "completion_tokens": 4 + i, "total_tokens": 45 + i}
        response = {"status_code": 200, "body": {"usage": usage}}
        answers.append({"custom_id": f"r{i}", "response": response})
    paths = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for path, entries in zip(paths, (lines, answers[:5]), strict=True):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return paths


def test_simulates_a_batch_file(batch: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    status = main(
        ["simulate", "--fast", "--batch", str(batch[0]), "--answers", str(batch[1]),
         "--tokenizer", str(model_path("smollm2")), "--model", "SmolLM2-135M",
         "--engine", "sequential", "--kv-slots", "1000", "--policies", "fcfs,blendserve",
         "--chunks", "64", "--json", str(out)]
    )  # fmt: skip
    assert status == 0
    document = json.loads(out.read_text())
    assert document["workload"]["requests"] == 5, "the line without an answer is left out"
    assert document["workload"]["output_tokens"] == 4 + 5 + 6 + 7 + 8
    assert document["workload"]["sharing"] == pytest.approx(4 * 40 / (5 * 41))
    assert [r["policy"] for r in document["results"]] == ["fcfs", "blendserve"]


def test_names_what_is_missing(
    batch: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--batch", str(batch[0])]) == 2
    assert "needs --answers too" in capsys.readouterr().err
    with pytest.raises(WorkloadError, match=r"absent\.jsonl"):
        BatchReplay.read(str(batch[0]), str(tmp_path / "absent.jsonl"), str(model_path("smollm2")))
