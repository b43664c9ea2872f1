"""``sglang-blendserve plan`` with the real tokenizer of the demo model.

Run: pytest test/plan_command/test_plan_command.py (after sglang-blendserve fetch-model smollm2)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint, LineError
from sglang.srt.blendserve.fetch_model.models import model_path
from sglang.srt.blendserve.plan_command.output_lengths import expected_lengths
from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts
from sglang.srt.blendserve.requests.tokenizing import TokenizedBatch, tokenize_batch

FEW_SHOT = "Question: what is 1 + 1? Answer: 2. " * 20


@pytest.fixture(scope="module")
def model() -> Path:
    folder = model_path("smollm2")
    assert folder.is_dir(), "the demo model is missing: sglang-blendserve fetch-model smollm2"
    return folder


@pytest.fixture
def prompts(model: Path) -> EnginePrompts:
    return EnginePrompts.of(str(model))


def chat(text: object, **body: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **body}


def line(number: int, body: dict[str, Any], url: Endpoint = Endpoint.CHAT) -> BatchLine:
    return BatchLine(line=number, custom_id=f"r{number}", method="POST", url=url, body=body)


def as_jsonl(lines: list[BatchLine]) -> str:
    return "".join(
        json.dumps({"custom_id": x.custom_id, "method": x.method, "url": x.url, "body": x.body})
        + "\n"
        for x in lines
    )


@pytest.fixture
def batch_file(tmp_path: Path) -> Path:
    """Twelve questions behind one long prefix, four long stories, and one line that is broken."""
    lines = [
        line(i, {"prompt": f"{FEW_SHOT}Question: {i}?", "max_tokens": 1}, Endpoint.COMPLETIONS)
        for i in range(12)
    ]
    lines += [line(20 + i, chat(f"Tell me story {i}.", max_tokens=900)) for i in range(4)]
    path = tmp_path / "in.jsonl"
    path.write_text(as_jsonl(lines) + "nonsense\n")
    return path


@pytest.fixture
def run(batch_file: Path, model: Path) -> Callable[..., int]:
    def call(*options: str, file: Path | None = None) -> int:
        return cli.main(["plan", "-i", str(file or batch_file), "--model-path", str(model),
                         "--device", "A100-80G", *options])  # fmt: skip

    return call


def test_json_report(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--output-tokens", "100") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["requests"] == 16
    assert report["output_tokens"] == 12 * 1 + 4 * 100
    assert 0.7 < report["sharing"] < 1
    assert report["optimum_seconds"] == pytest.approx(
        max(report["compute_seconds"], report["memory_seconds"]), rel=0.02
    )
    assert report["root_density"] == pytest.approx(
        report["compute_seconds"] / report["memory_seconds"]
    )
    assert report["bound_seconds"] >= report["optimum_seconds"]
    assert report["compute_seconds_unshared"] > 2 * report["compute_seconds"]
    assert report["model"]["parameters"] == 134_515_008
    assert report["device"]["name"] == "A100-80G"
    # No table has the nine heads of this model.
    assert report["rates"]["source"] == "data sheet"
    assert report["rates"]["flops"] == report["device"]["peak_flops"]
    assert [error["line"] for error in report["refused"]] == [17]
    tree = report["tree"]
    assert tree["requests"] == sum(child["requests"] for child in tree["children"]) == 16
    few_shot, stories = tree["children"]
    assert few_shot["requests"] == 12
    assert few_shot["text"].startswith('"Question: what is 1')
    assert few_shot["density"] > report["root_density"] > stories["density"]


def test_text_report(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--levels", "1", "--children", "1") == 0
    out = capsys.readouterr().out
    assert "requests        16" in out
    assert "guessed: 256 each, at most max_tokens; not measured" in out
    assert "(data sheet)" in out
    assert "1 line, not planned:" in out
    assert "Line 17: this line is not parseable" in out
    assert "├─" in out
    assert "… 1 more" in out


def test_picture(run: Callable[..., int], tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    assert run("--picture", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_picture_of_another_kind_is_refused_before_the_work(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--picture", str(tmp_path / "plan.doc")) == 1
    assert ".png" in capsys.readouterr().err


def test_measured_lengths(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "out.jsonl"
    usage = {"usage": {"completion_tokens": 700}}
    answered = [{"custom_id": f"r{20 + i}", "response": {"body": usage}} for i in range(3)]
    failed = {"custom_id": "r0", "response": None, "error": {"code": "x"}}
    results.write_text("\n".join(json.dumps(r) for r in [*answered, failed]) + "\n\n")
    assert run("--json", "--output-tokens", str(results)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output_tokens"] == 4 * 700 + 12 * 1  # the mean, but for max_tokens of 1
    assert "mean of these for 13 requests" in report["output_tokens_source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output-tokens", "many"], "must be a number, 'max' or the path"),
        (["--device", "Z80"], "unknown device 'Z80'"),
        (["--tp-size", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_explained(
    run: Callable[..., int],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*options) == 1
    err = capsys.readouterr().err
    assert err.startswith("plan: ")
    assert message in err


def test_files_that_hold_nothing_to_plan(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file=tmp_path / "missing.jsonl") == 1
    assert "missing.jsonl" in capsys.readouterr().err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    assert run(file=empty) == 1
    assert "no request" in capsys.readouterr().err
    broken = tmp_path / "broken.jsonl"
    broken.write_text("nonsense\n")
    assert run(file=broken) == 1
    assert "Line 1" in capsys.readouterr().err


# Tokenizing


def test_one_line_may_be_several_sequences(prompts: EnginePrompts) -> None:
    lines = [
        line(1, {"prompt": ["a", "b c"], "n": 2, "max_tokens": 5}, Endpoint.COMPLETIONS),
        line(2, {"prompt": [7, 8, 9]}, Endpoint.COMPLETIONS),
        line(3, {"prompt": [[1], [2, 3]]}, Endpoint.COMPLETIONS),
        line(4, chat("x", max_completion_tokens=3, max_tokens=9, ignore_eos=True)),
        line(5, chat("x", max_tokens=9.0)),
        line(6, chat("x")),
    ]
    batch = tokenize_batch(lines, prompts)
    assert batch.custom_ids == ["r1", "r2", "r3", "r4", "r5", "r6"]
    assert batch.line == [0, 0, 0, 0, 1, 2, 2, 3, 4, 5]
    assert batch.max_tokens == [5, 5, 5, 5, 16, 16, 16, 3, 9, None]
    assert batch.exact.index(True) == 7
    assert batch.prompts[4].tolist() == [7, 8, 9]
    assert batch.prompts[6].tolist() == [2, 3]


def test_what_cannot_be_counted_is_refused_with_its_line(prompts: EnginePrompts) -> None:
    image = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    error = LineError(code="invalid_value", message="Line 9: bad", line=9)
    lines: list[BatchLine | LineError] = [
        line(1, chat(image)),
        error,
        line(2, {"messages": ["hello"]}),
        line(3, {"prompt": [1.5]}, Endpoint.COMPLETIONS),
        line(4, {"prompt": "word " * 9000}, Endpoint.COMPLETIONS),
        line(5, {"input": "x"}, Endpoint.EMBEDDINGS),
        line(6, chat("fine")),
    ]
    batch = tokenize_batch(lines, prompts)
    assert [e.line for e in batch.refused if e is not error] == [1, 2, 3, 4, 5]
    assert error in batch.refused
    assert "only supports text" in batch.refused[0].message
    assert "context length (8192 tokens)" in batch.refused[-2].message
    assert "--is-embedding" in batch.refused[-1].message
    assert batch.custom_ids == ["r6"]


def test_progress_hears_of_every_line(prompts: EnginePrompts) -> None:
    heard: list[int] = []
    lines = [line(i, {"prompt": "a"}, Endpoint.COMPLETIONS) for i in range(1100)]
    tokenize_batch(lines, prompts, advance=heard.append)
    assert sum(heard) == 1100
    assert len(heard) > 1


# Output lengths


def batch_of(max_tokens: list[int | None], exact: list[bool] | None = None) -> TokenizedBatch:
    count = len(max_tokens)
    return TokenizedBatch(
        prompts=[np.zeros(10, dtype=np.int32)] * count,
        line=list(range(count)),
        max_tokens=max_tokens,
        exact=exact or [False] * count,
        custom_ids=[f"r{i}" for i in range(count)],
    )


def test_a_guess_stays_below_every_cap() -> None:
    lengths = expected_lengths(batch_of([None, 5, 5000, 5000], [False] * 3 + [True]), "100", 1000)
    assert lengths.tokens.tolist() == [100, 5, 100, 990]
    assert expected_lengths(batch_of([None]), "100", 50).tokens.tolist() == [40]


def test_max_tokens_as_lengths() -> None:
    assert expected_lengths(batch_of([None, 5]), "max", 1000).tokens.tolist() == [990, 5]
    with pytest.raises(ValueError, match="no max_tokens"):
        expected_lengths(batch_of([None, 5]), "max", 0)


def test_usage_of_several_choices_is_shared_out(tmp_path: Path) -> None:
    batch = TokenizedBatch([np.zeros(3, np.int32)] * 3, [0, 0, 1], [None] * 3, [False] * 3,
                           ["a", "b"])  # fmt: skip
    path = tmp_path / "out.jsonl"
    result = {"custom_id": "a", "response": {"body": {"usage": {"completion_tokens": 30}}}}
    path.write_text(json.dumps(result))
    assert expected_lengths(batch, str(path), 0).tokens.tolist() == [15, 15, 15]
    path.write_text("{")
    with pytest.raises(ValueError, match="line 1"):
        expected_lengths(batch, str(path), 0)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no result line"):
        expected_lengths(batch, str(path), 0)
