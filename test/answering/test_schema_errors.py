"""Whatever stands in a body, SGLang's schema takes it or its user is told what is wrong.

pytest test/answering/test_schema_errors.py
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sglang.srt.blendserve.answering import schema_errors
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.answering.schema_errors import validated

PART = {"type": "text", "text": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [PART, {"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "t"},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "stop": ["a"],
    "logit_bias": {"5": 1},
    "reasoning": {"effort": "low"},
    "chat_template_kwargs": {},
    "n": 1,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything within a value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, ...]] = []
    for step, inner in steps:
        found.append((*path, step))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, step))
    return found


PLACES = places(CHAT)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "role", "text", "schema", "x"]), inner, max_size=2
        )
    ),
    max_leaves=4,
)


def put(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return the chat with another value at a path; ``...`` leaves it out."""
    body = holder = deepcopy(CHAT)
    for step in path[:-1]:
        holder = holder[step]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return body


def refusal(schema: Any, body: dict[str, Any]) -> RequestRefused | None:
    """Return why a body is refused, None if it is not."""
    try:
        validated(schema, lambda: deepcopy(body))
    except RequestRefused as refused:
        return refused
    return None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it asserts no time
@example(("response_format",), "json")
@example(("response_format", "json_schema"), ...)
@given(st.sampled_from(PLACES), VALUES | st.just(...))
def test_any_value_anywhere_is_taken_or_refused(path: tuple[Any, ...], value: Any) -> None:
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

    refused = refusal(ChatCompletionRequest, put(path, value))
    if refused is not None:
        assert refused.param is None or refused.param.split(".")[0] in {*CHAT, "reasoning_effort"}


def test_errors_of_an_unknown_form_are_told_in_pydantic_s_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

    def fails(*_: Any) -> None:
        raise IndexError

    monkeypatch.setattr(schema_errors, "_find", fails)
    with pytest.raises(RequestRefused) as refused:
        validated(ChatCompletionRequest, lambda: {**CHAT, "n": "x"})
    assert refused.value.param == "n"
    assert str(refused.value).startswith("n is not valid: Input should be a valid integer")
