"""What a body may not hold, by what the engine can do with it."""

from __future__ import annotations

from typing import Any

import pytest

from sglang.srt.blendserve.answering.request_body import check_body, request_body
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint

TOOLS = [{"type": "function", "function": {"name": "f"}}]
HI = [{"role": "user", "content": "hi"}]


def check(*, parses_tools: bool = False, own_templates: bool = False, **body: Any) -> None:
    check_body(
        {"messages": HI, **body},
        Endpoint.CHAT,
        parses_tools=parses_tools,
        own_templates=own_templates,
    )


@pytest.mark.parametrize(
    "body",
    [
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "auto"},
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"messages": [{"role": "system", "content": "s", "tools": TOOLS}, *HI]},
    ],
)
def test_tools_want_a_parser(body: dict[str, Any]) -> None:
    check(**body, parses_tools=True)
    with pytest.raises(RequestRefused, match="Start it with --tool-call-parser") as refused:
        check(**body)
    assert refused.value.param == "tools"


def test_tools_that_are_not_to_be_called_want_none() -> None:
    check(tools=TOOLS, tool_choice="none")
    check(tools=[])


def test_a_template_of_a_body_s_own_may_be_allowed() -> None:
    body = {"chat_template_kwargs": {"chat_template": "x"}}
    check(**body, own_templates=True)
    with pytest.raises(RequestRefused):
        check(**body)
    with pytest.raises(RequestRefused):
        check(chat_template_kwargs={"tokenize": False}, own_templates=True)


def test_the_line_itself_is_not_changed() -> None:
    body = {"prompt": ["a"], "rid": "x", "n": None, "custom_params": {"a": None, "b": [None]}}
    line = BatchLine(line=1, custom_id="a", method="POST", url=Endpoint.COMPLETIONS, body=body)
    made = request_body(line)
    assert made == {"prompt": ["a"], "custom_params": {"a": None, "b": [None]}}
    made["custom_params"]["b"].clear()
    assert line.body["custom_params"]["b"] == [None]
