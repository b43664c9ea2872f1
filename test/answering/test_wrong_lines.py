"""Wrong requests, and what their users are told: the line, the field, how to mend it.

    pytest test/answering/test_wrong_lines.py

SGLang's own schemas and handlers refuse them, in whichever release is installed; nothing reaches
the scheduler.
"""

from __future__ import annotations

from typing import Any

import pytest
from tokenizer_side import TokenizerSide

pytestmark = pytest.mark.anyio


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def part(**fields: Any) -> dict[str, Any]:
    return user([fields])


def chat(**fields: Any) -> dict[str, Any]:
    return user("hi", **fields)


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "hi", **fields}


CONTENT = "a string or an array of content parts"
MESSAGE = 'an object like {"role": "user", "content": "..."}'

WRONG: dict[str, tuple[dict[str, Any], str | None, str]] = {
    # name -> body, the field as the user wrote it, what stands behind it
    "content null": (
        user(None),
        "messages.0.content",
        f"is missing or null; it must be {CONTENT}.",
    ),
    "content missing": (
        {"messages": [{"role": "system", "content": "x"}, {"role": "user"}]},
        "messages.1.content",
        f"is missing or null; it must be {CONTENT}.",
    ),
    "content number": (user(5), "messages.0.content", f"must be {CONTENT}, not 5."),
    "content of texts": (
        user(["a"]),
        "messages.0.content.0",
        """must be an object like {"type": "text", "text": "..."}, not 'a'.""",
    ),
    "part without text": (
        part(type="text"),
        "messages.0.content.0.text",
        "is missing or null; it must be a string.",
    ),
    "part without url": (
        part(type="image_url"),
        "messages.0.content.0.image_url",
        'is missing or null; it must be an object like {"url": "..."}.',
    ),
    "part with a bare url": (
        part(type="image_url", image_url="http://x"),
        "messages.0.content.0.image_url",
        """must be an object like {"url": "..."}, not 'http://x'.""",
    ),
    "part without type": (
        part(text="a"),
        "messages.0.content.0.type",
        'is missing or null; it must be "text", "image_url" or another type of part.',
    ),
    "message of text": ({"messages": ["hi"]}, "messages.0", f"must be {MESSAGE}, not 'hi'."),
    "message null": ({"messages": [None]}, "messages.0", f"must be {MESSAGE}, not null."),
    "role missing": (
        {"messages": [{"content": "x"}]},
        "messages.0.role",
        'is missing or null; it must be "user", "system", "assistant" or another role.',
    ),
    "role number": (
        {"messages": [{"role": 7, "content": "x"}]},
        "messages.0.role",
        'must be "user", "system", "assistant" or another role, not 7.',
    ),
    "system content": (
        {"messages": [{"role": "system", "content": 5}]},
        "messages.0.content",
        f"must be {CONTENT}, not 5.",
    ),
    "tool call": (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]},
        "messages.0.tool_calls.0.function",
        'is missing or null; it must be an object like {"name": "...", "arguments": "..."}.',
    ),
    "stop in array": (chat(stop=["a", 5]), "stop.1", "must be a string, not 5."),
    "tool_choice": (
        chat(tool_choice="sometimes"),
        "tool_choice",
        'must be "auto", "required", "none" or {"type": "function", "function": {...}}, '
        "not 'sometimes'.",
    ),
    "tool_choice name": (
        chat(tool_choice={"type": "function"}),
        "tool_choice.function",
        'is missing or null; it must be an object like {"name": "..."}.',
    ),
    "tool": (
        chat(tools=[{"type": "function"}]),
        "tools.0.function",
        'is missing or null; it must be an object like {"name": "...", "parameters": {...}}.',
    ),
    "tools object": (chat(tools={"a": 1}), "tools", "must be an array, not an object."),
    "response_format text": (
        chat(response_format="json"),
        "response_format",
        """must be an object like {"type": "json_object"}, not 'json'.""",
    ),
    "response_format type": (
        chat(response_format={"type": "xml"}),
        "response_format.type",
        'must be "text", "json_object", "json_schema" or "structural_tag", not \'xml\'.',
    ),
    "response_format schema": (
        chat(response_format={"type": "json_schema", "schema": "x"}),
        "response_format",
        "has not the form that SGLang takes (AttributeError: 'str' object has no attribute 'get').",
    ),
    "temperature": (chat(temperature="hot"), "temperature", "must be a number, not 'hot'."),
    "max_tokens": (chat(max_tokens=1.5), "max_tokens", "must be an integer, not 1.5."),
    "logprobs": (chat(logprobs=3), "logprobs", "must be a boolean, not 3."),
    "logit_bias": (chat(logit_bias={"5": "x"}), "logit_bias.5", "must be a number, not 'x'."),
    "logit_bias array": (chat(logit_bias=[1]), "logit_bias", "must be an object, not an array."),
    "template arguments": (
        chat(chat_template_kwargs=[1]),
        "chat_template_kwargs",
        "must be an object, not an array.",
    ),
    "template argument of SGLang's": (
        chat(chat_template_kwargs={"add_generation_prompt": False}),
        "chat_template_kwargs.add_generation_prompt",
        "is set by SGLang itself; leave it out.",
    ),
    "template in a body": (
        chat(chat_template_kwargs={"chat_template": "x"}),
        "chat_template_kwargs.chat_template",
        "is a program, which a batch line may not bring along; leave it out.",
    ),
    "template argument's type": (
        chat(chat_template_kwargs={"spaces_between_special_tokens": "x"}),
        "spaces_between_special_tokens",
        "has not the form it must have: Expected `bool`, got `str`",
    ),
    "prompt null in array": ({"prompt": ["a", None]}, "prompt.1", "must be a string, not null."),
    "prompt object": (
        {"prompt": [[1, "x"]]},
        "prompt.0.1",
        "must be an integer, not 'x'.",
    ),
    "input null in array": ({"input": ["a", None]}, "input.1", "must be a string, not null."),
    "negative": (text(max_tokens=-5), "max_tokens", "is not valid: max_tokens must be positive."),
    "top_logprobs alone": (
        chat(top_logprobs=3),
        "top_logprobs",
        "has no effect without logprobs: set logprobs to true.",
    ),
    "best_of": (
        text(best_of=4),
        "best_of",
        "has no effect in SGLang: it must equal n (1), or be left out.",
    ),
    "suffix": (
        text(suffix="end"),
        "suffix",
        "has no effect: SGLang does not insert text. Leave it out.",
    ),
    "functions": (chat(functions=[{"name": "f"}]), "functions", "has no effect; use tools."),
    "function_call": (
        chat(function_call="auto"),
        "function_call",
        "has no effect; use tool_choice.",
    ),
    "guided_json": (
        chat(guided_json={"type": "object"}),
        "guided_json",
        "has no effect in SGLang; use response_format, regex or ebnf.",
    ),
    "audio": (
        chat(modalities=["text", "audio"]),
        "modalities",
        "has no effect in SGLang, which answers with text only; leave it out.",
    ),
    "session": (
        chat(session_params={"id": "s"}),
        "session_params",
        "belongs to a session, and the lines of a batch have no order; leave it out.",
    ),
    "router": (
        chat(bootstrap_room=3),
        "bootstrap_room",
        "is set by SGLang's router and not by a batch line; leave it out.",
    ),
    "adapter for each prompt": (
        {"prompt": ["a", "b"], "lora_path": ["x"]},
        "lora_path",
        "has 1 entries for 2 prompts; give one for each.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_line_field_and_mend_are_named(side: TokenizerSide, name: str) -> None:
    body, param, message = WRONG[name]
    error = await side.error(body)
    assert error["param"] == param
    assert error["message"].startswith(f"Line 7: {param} {message}")
    assert error["line"] == 7


UNION = {
    # name -> body, the field, values that the message must name (releases know more of them)
    "part of an unknown type": (part(type="alien"), "messages.0.content.0.type", ("text",)),
    "unknown role": (
        {"messages": [{"role": "alien", "content": "x"}]},
        "messages.0.role",
        ("user", "system", "assistant", "tool"),
    ),
    "effort": (chat(reasoning_effort="huge"), "reasoning_effort", ("low", "high")),
    "stop": (chat(stop=5), "stop", ()),
    "lora_path": (chat(lora_path=5), "lora_path", ()),
    "extra_key": (text(extra_key=5), "extra_key", ()),
}


@pytest.mark.parametrize("name", UNION)
async def test_all_that_would_be_right_is_named(side: TokenizerSide, name: str) -> None:
    body, param, choices = UNION[name]
    error = await side.error(body)
    assert error["param"] == param
    message = error["message"]
    assert message.startswith(f"Line 7: {param} must be ")
    assert message.count(", not ") == 1
    assert all(f'"{choice}"' in message for choice in choices)
    if not choices:
        assert "a string" in message
        assert "an array of strings" in message


async def test_codes_are_names_or_null(side: TokenizerSide) -> None:
    for body, _, _ in WRONG.values():
        assert (await side.error(body))["code"] is None


@pytest.mark.parametrize(
    "body",
    [{"messages": []}, {"prompt": ""}, chat(tool_choice="required"), chat(input_ids=[])],
)
async def test_what_sglang_s_handlers_refuse_is_refused(
    side: TokenizerSide, body: dict[str, Any]
) -> None:
    error = await side.error(body)
    assert error["message"].startswith("Line 7: ")


async def test_a_message_does_not_repeat_a_long_body(side: TokenizerSide) -> None:
    error = await side.error(chat(reasoning={"effort": "x" * 100_000}))
    assert error["message"].endswith("xxx...")
    assert len(error["message"]) < 2100
