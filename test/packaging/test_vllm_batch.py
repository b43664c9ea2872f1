"""What `benchmark/documents/vllm_batch.py` reads of vLLM's output; vLLM itself is not needed.

pytest test/packaging/test_vllm_batch.py
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmark" / "documents"
sys.path.insert(0, str(FOLDER))

import vllm_batch  # noqa: E402
from vllm_batch import Times, Usage, batch_times, read_usage  # noqa: E402

# As vLLM 0.32.0 wrote it over 20 requests, shortened; the seconds are those of the lines.
LOG = (
    (3.5, "INFO 11-28 20:56:34 [run_batch.py:33] args: Namespace(subparser='run-batch')"),
    (4.0, "Multi-thread loading shards: 100% Completed | 1/1 [00:00<00:00,  1.74it/s]"),
    (61.0, "INFO 11-28 20:58:45 [run_batch.py:841] Reading batch from in.jsonl..."),
    (62.0, "Running batch:   0% Completed | 0/20 [00:00<?, ?req/s]"),
    (104.0, "Running batch:   5% Completed | 1/20 [00:41<13:17, 41.99s/req]"),
    (112.5, "Running batch:  15% Completed | 3/20 [00:50<03:58, 14.02s/req]"),
    (131.25, "Running batch: 100% Completed | 20/20 [01:09<00:00,  3.45s/req]"),
    (131.3, ""),
    (133.0, "INFO 11-28 20:59:56 [core_client.py:777] [shutdown] MPClient: complete"),
)


def answer(custom_id: str, cached: int | None) -> str:
    """A line of ``run-batch``'s output."""
    details = None if cached is None else {"cached_tokens": cached}
    usage = {"prompt_tokens": 800, "completion_tokens": 32, "prompt_tokens_details": details}
    body = {"choices": [{"message": {"content": "x"}}], "usage": usage}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return json.dumps({"custom_id": custom_id, "response": response, "error": None})


def test_seconds_are_those_between_first_request_and_last_answer() -> None:
    assert batch_times(LOG, 2.0) == Times(startup_seconds=60.0, seconds=69.25)


def test_a_batch_that_did_not_end_has_no_seconds() -> None:
    assert batch_times(LOG[:6], 2.0) is None
    assert batch_times(LOG[:3], 2.0) is None


def test_usage_adds_up_answers_and_counts_errors(tmp_path: Path) -> None:
    refused = {"error": {"message": "The model `x` does not exist.", "code": 404}}
    response = {"status_code": 404, "request_id": "r", "body": None}
    lines = [
        answer("a", 736),
        answer("b", None),
        json.dumps({"custom_id": "c", "response": response, "error": refused}),
    ]
    (tmp_path / "out.jsonl").write_text("\n".join(lines) + "\n")
    assert read_usage(tmp_path / "out.jsonl") == Usage(2, 1, 1_600, 64, 736)


def test_command_gives_the_kv_cache_in_whole_blocks() -> None:
    args = (Path("env"), Path("in.jsonl"), Path("out.jsonl"), Path("model"), "name")
    line = vllm_batch.command(*args, 12_000, ("--dtype", "float32"))
    pairs = dict(itertools.pairwise(line))
    # 375 blocks for requests, and the one that vLLM holds back.
    assert pairs["--num-gpu-blocks-override"] == "376"
    assert pairs["--max-model-len"] == "4096"
    assert line[-2:] == ["--dtype", "float32"]
    # vLLM refuses to start where one sequence of full length does not fit.
    small = vllm_batch.command(*args, 1_536)
    assert dict(itertools.pairwise(small))["--max-model-len"] == "1536"
    with pytest.raises(ValueError, match="not a multiple of 32"):
        vllm_batch.command(*args, 12_001)


def test_a_run_that_fails_or_never_ends_the_batch_is_an_error(tmp_path: Path) -> None:
    # A stand-in that fails as vLLM does: with words on stderr and a status, or in silence.
    for script, words in (
        ("echo 'no such model' >&2; exit 1", "no such model"),
        ("echo 'Running batch:   0% Completed | 0/2 [00:00<?, ?req/s]'", "ended with status 0"),
    ):
        with pytest.raises(RuntimeError, match=words):
            vllm_batch.run(["bash", "-c", script], tmp_path / "log")


def test_where_vllm_is_missing_one_line_says_how_to_make_it(tmp_path: Path) -> None:
    said = vllm_batch.missing(tmp_path)
    assert said is not None
    assert "vllm_env.sh" in said
    assert "\n" not in said
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").touch()
    assert vllm_batch.missing(tmp_path) is None
