"""Lines whose token ids are known are answered as any, and nothing is tokenized again.

pytest test/requests/test_known_prompts_alike.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_process import play
from prompt_lines import ASSISTANT, CASES, CHAT, COMPLETIONS, IDS, REFUSED, TOOLS, USER

ALIKE = {name: case for name, case in CASES.items() if case[0] in (CHAT, COMPLETIONS)}
"""Lines of the endpoints that take prompts whose token ids are known."""

LONG_TEXT = "There was a time when nobody knew what a token is, and nobody asked for one. "

ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "several answers": (CHAT, {"messages": [USER], "n": 2}),
    "logprobs": (CHAT, {"messages": [USER], "logprobs": True, "top_logprobs": 2}),
    "a stop": (CHAT, {"messages": [USER], "stop": ["e", "a"]}),
    "continued, with tools": (
        CHAT,
        {"messages": [USER, ASSISTANT], "continue_final_message": True, "tools": TOOLS},
    ),
    "very long": (CHAT, {"messages": [{"role": "user", "content": LONG_TEXT * 150}]}),
    "an echo": (COMPLETIONS, {"prompt": LONG_TEXT, "echo": True}),
    "an echo with logprobs": (COMPLETIONS, {"prompt": LONG_TEXT, "echo": True, "logprobs": 2}),
    "one of a list": (COMPLETIONS, {"prompt": [LONG_TEXT]}),
    "several answers to each": (
        COMPLETIONS,
        {"prompt": [LONG_TEXT, LONG_TEXT * 2], "n": 2, "echo": True, "logprobs": 1},
    ),
}
"""Lines whose answers, beyond their prompts, hang on how a request reaches the engine."""

TOO_LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat too long": (CHAT, {"messages": [{"role": "user", "content": "one " * 5000}]}),
    "a text too long": (COMPLETIONS, {"prompt": "one " * 5000}),
    "too long with its answer": (
        CHAT,
        {"messages": [{"role": "user", "content": "one " * 4000}], "max_tokens": 200},
    ),
}
"""Refused for the number of their tokens, which only shows when these are known."""

LENGTHS = [5010, 5002, 4010]
"""How many tokens the prompts of these have."""


@pytest.fixture(scope="module")
def order(odd_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Lines with their prompts, as the store has them."""
    cases = [*ALIKE.values(), *ANSWERS.values()]
    lines = [(url, {"max_tokens": 4, "temperature": 0, **body}) for url, body in cases]
    flags = ["--chat-template", str(odd_model / "odd.jinja"), "--tool-call-parser", "pythonic"]
    order = {"way": "store", "model": str(odd_model), "flags": flags, "lines": lines}
    stored: Any = play("prompts_run.py", tmp_path_factory.mktemp("store"), order)
    prompts = [[prompt["tokens"] for prompt in line["prompts"]] for line in stored]
    refused = [(url, body) for url, body in REFUSED.values() if url != "/v1/embeddings"]
    return {
        **order,
        "flags": [*flags, "--max-total-tokens", "20000", "--disable-radix-cache"],
        "lines": [*lines, *refused, *TOO_LONG.values()],
        # These were never answered for a store; whatever it had, they are refused alike.
        "prompts": prompts + [[IDS]] * len(refused) + [[[5] * length] for length in LENGTHS],
    }


@pytest.fixture(scope="module")
def sent(order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What goes to the scheduler, without one."""
    [_, template, _, parser, *_] = order["flags"]
    settings = {"chat_template": template, "tool_call_parser": parser, "grammar_backend": "none"}
    folder = tmp_path_factory.mktemp("side")
    return list(
        play("known_prompts_run.py", folder, {**order, "way": "side", "settings": settings})
    )


def named(found: list[Any]) -> dict[str, Any]:
    refused = [name for name, (url, _) in REFUSED.items() if url != "/v1/embeddings"]
    return dict(zip([*ALIKE, *ANSWERS, *refused, *TOO_LONG], found, strict=True))


def test_the_scheduler_gets_the_same_requests(sent: list[Any]) -> None:
    for name, line in named(sent).items():
        assert line["known"]["sent"] == line["plain"]["sent"], name
        assert bool(line["known"]["sent"]) == (name in ALIKE or name in ANSWERS), name
        assert line["known"]["body"] == line["plain"]["body"], name


def test_nothing_is_tokenized(sent: list[Any]) -> None:
    lines = {name: line for name, line in named(sent).items() if name in ALIKE or name in ANSWERS}
    assert {name for name, line in lines.items() if line["known"]["tokenized"]} == set()
    before = [name for name, line in lines.items() if line["plain"]["tokenized"]]
    assert {"plain", "tools", "last continued", "long one continued", *ANSWERS} <= {*before}


@pytest.mark.engine
def test_an_engine_answers_alike(order: dict[str, Any], tmp_path: Path) -> None:
    found = play("known_prompts_run.py", tmp_path, {**order, "way": "engine"})
    for name, line in named(list(found)).items():
        plain, known = line["plain"], line["known"]
        assert plain["status"] == (200 if name in ALIKE or name in ANSWERS else 400), name
        assert (known["status"], known["body"]) == (plain["status"], plain["body"]), name
        if plain["status"] == 200:
            assert known["tokenized"] == [], name
            assert known["body"]["usage"]["prompt_tokens"] > 0
    assert json.dumps(list(found)).count('"tokenized": []') > len(ALIKE)
