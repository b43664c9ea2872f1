"""The prompts of lines without an engine are those that an engine reports.

pytest test/requests/test_engine_prompts.py

The model has all that makes tokens differ from a plain rendering: a tokenizer class that
transformers 5 puts other parts into, a BOS for completions, and a chat template of the command
line that reads tools, ``reasoning_effort`` and arguments of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_process import play
from prompt_lines import CASES, COMPLETIONS, EMBEDDINGS, IDS, REFUSED, RESPONSES, SCORE
from two_releases import OLD

from sglang.srt.blendserve.answering.conversion import Converted
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts


@pytest.fixture(scope="module")
def order(odd_model: Path) -> dict[str, Any]:
    """Lines and the engine's flags."""
    return {
        "model": str(odd_model),
        "flags": [
            *("--chat-template", str(odd_model / "odd.jinja"), "--tool-call-parser", "pythonic"),
            *("--max-total-tokens", "8192"),
        ],
        "lines": [*CASES.values(), *REFUSED.values()],
    }


@pytest.fixture(scope="module")
def stored(order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the lines are without an engine."""
    found = play("prompts_run.py", tmp_path_factory.mktemp("store"), {**order, "way": "store"})
    return list(found)


@pytest.mark.engine
def test_prompts_are_those_that_the_engine_reports(
    order: dict[str, Any], stored: list[Any], tmp_path: Path
) -> None:
    engine = list(play("prompts_run.py", tmp_path, {**order, "way": "engine"}))
    wrong = {}
    for (name, (url, _)), mine, theirs in zip(CASES.items(), stored, engine, strict=False):
        assert theirs["status"] == 200, (name, theirs)
        ids = [prompt["tokens"] for prompt in mine["prompts"]]
        if theirs["prompt_tokens"] != sum(map(len, ids)):
            wrong[name] = (theirs["prompt_tokens"], ids)
        if theirs["ids"] is None:
            expected = OLD or len(ids) > 1 if url == COMPLETIONS else url in (RESPONSES, SCORE)
            assert expected, name
        elif theirs["ids"] != ids[0]:
            wrong[name] = (theirs["ids"], ids[0])
    assert wrong == {}
    for name, mine, theirs in zip(REFUSED, stored[len(CASES) :], engine[len(CASES) :], strict=True):
        assert theirs["status"] == 400, name
        assert theirs["message"].partition(": ")[2] == mine["refused"], name


def test_a_plain_rendering_would_have_other_tokens(stored: list[Any], odd_model: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(odd_model)
    mine = dict(zip(CASES, stored, strict=False))
    for name in ("a text", "a text with blanks"):
        [prompt] = mine[name]["prompts"]
        assert prompt["tokens"] != plain(CASES[name][1]["prompt"])["input_ids"], name
        assert prompt["tokens"][0] == plain.bos_token_id
    assert [p["max_tokens"] for p in mine["a float cap"]["prompts"]] == [64]


EMBEDDED: list[Any] = ["a text", ["two", "texts to embed, one longer"], IDS, [IDS, IDS[:3]]]


def test_prompts_of_embeddings_are_those_that_are_sent(odd_model: Path, tmp_path: Path) -> None:
    lines = [(EMBEDDINGS, {"input": given}) for given in EMBEDDED]
    order = {"model": str(odd_model), "lines": lines}
    (tmp_path / "store").mkdir()
    mine = play(
        "prompts_run.py", tmp_path / "store", {**order, "way": "store", "flags": ["--is-embedding"]}
    )
    sent = play(
        "prompts_run.py", tmp_path, {**order, "way": "side", "settings": {"is_embedding": True}}
    )
    assert [line["status"] for line in sent] == [200] * len(EMBEDDED)
    assert [[p["tokens"] for p in line["prompts"]] for line in mine] == [
        line["ids"] for line in sent
    ]
    assert {p["max_tokens"] for line in mine for p in line["prompts"]} == {0}


def test_what_only_the_engine_can_tokenize_has_an_estimated_length(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.managers.io_struct import GenerateReqInput

    prompts = EnginePrompts.of(str(tiny_model))
    convert = prompts._conversion.convert
    asked: dict[str, Any] = {"image_data": ["data:image/png,x"] * 2}

    def with_media(line: BatchLine, rid: str) -> Converted:
        # As the handler of a multimodal model has it; there is no small one.
        if line.custom_id == "odd":
            raise OSError("ours")
        if line.custom_id != "media":
            return convert(line, rid)
        params = {"max_new_tokens": 9, "n": 2}
        request = GenerateReqInput(text="a" * 40, sampling_params=params, **asked)
        return Converted(request, None, None)

    monkeypatch.setattr(prompts._conversion, "convert", with_media)
    lines = [
        BatchLine(line=1, custom_id=name, method="POST", url=COMPLETIONS, body={"prompt": "b c"})
        for name in ("plain", "media", "odd", "plain")
    ]
    [plain], [media], [odd], [last] = prompts.render_all(lines)
    assert plain.tokens.tolist() == last.tokens.tolist() != []
    assert (media.exact, media.tokens.size, media.max_tokens, media.choices) == (False, 0, 9, 2)
    assert media.length > 40 // 4
    asked["image_data"].pop()
    [[with_one]] = prompts.render_all(lines[1:2])
    assert with_one.length < media.length
    assert (odd.exact, odd.max_tokens, odd.known_length) == (False, None, False)
    assert odd.length > 0
