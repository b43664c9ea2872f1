"""Every documented feature of a request gets through the checks, and to the scheduler.

    pytest test/answering/test_valid_lines.py

test/run/test_run.py has a real engine answer some of them.
"""

from __future__ import annotations

import asyncio
import threading
from http import HTTPStatus
from typing import Any

import pytest
from fastapi import HTTPException
from tokenizer_side import TokenizerSide

from sglang.srt.blendserve.answering import executor
from sglang.srt.blendserve.answering.off_loop import BoundedThreads
from sglang.srt.blendserve.batch_file.types import Endpoint
from sglang.srt.blendserve.job_ids import parse_rid

pytestmark = pytest.mark.anyio

HI = {"messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "default": None}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}

VALID: dict[str, dict[str, Any]] = {
    "plain": HI,
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    "roles": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u", "name": "me"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "u"},
        ]
    },
    "sampling": {
        **HI, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": -1,
        "frequency_penalty": -2, "presence_penalty": 2, "repetition_penalty": 1.1,
    },
    "bounds": {
        **HI, "temperature": 2, "top_p": 1, "top_k": -1, "min_p": 1, "repetition_penalty": 2,
        "seed": 2**62, "max_tokens": 1, "min_tokens": 1, "n": 128,
    },
    "greedy": {**HI, "temperature": 0},
    "lengths": {**HI, "max_completion_tokens": 5, "min_tokens": 2, "ignore_eos": True},
    "bias": {**HI, "logit_bias": {"5": -100, "6": 100}},
    "stops": {**HI, "stop": ["\n", "END"], "stop_token_ids": [2, 3], "no_stop_trim": True},
    "one stop": {**HI, "stop": "\n"},
    "stop_regex": {**HI, "stop_regex": [r"[.!?]\s*$", r"and|or", r"(\d{1,3}\.){3}", r"\bend\b"]},
    "logprobs": {**HI, "logprobs": True, "top_logprobs": 20, "max_tokens": 4},
    "n": {**HI, "n": 3},
    "json object": {**HI, "response_format": {"type": "json_object"}},
    "json schema": {
        **HI,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
        },
    },
    "regex": {**HI, "regex": r"\w{1,60}@\w{1,60}\.(com|org)"},
    "ebnf": {**HI, "ebnf": 'root ::= "yes" | "no"'},
    "tools": {**HI, "tools": [TOOL], "parallel_tool_calls": False},
    "a tool": {
        **HI, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}},
    },
    "no tool": {**HI, "tools": [TOOL], "tool_choice": "none"},
    "tool results": {
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant", "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ],
        "tools": [TOOL],
    },
    "template arguments": {**HI, "chat_template_kwargs": {"enable_thinking": None, "mode": "x"}},
    "effort": {**HI, "reasoning_effort": "low"},
    "continued": {
        "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
        "continue_final_message": True,
    },
    "token ids of a chat": {**HI, "input_ids": [1, 2, 3]},
    "namespaces": {**HI, "extra_key": "k", "cache_salt": "s", "priority": 3},
    "labels": {**HI, "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
    "own data": {**HI, "custom_params": {"a": {"b": [1, None]}}},
    "text": {"prompt": "hi", "echo": True, "max_tokens": 3},
    "texts": {"prompt": ["a", "b"], "n": 2, "best_of": 2},
    "ids": {"prompt": [1, 2, 3]},
    "several ids": {"prompt": [[1, 2], [3]]},
    "text logprobs": {"prompt": "hi", "logprobs": 5, "echo": True},
    "text schema": {"prompt": "hi", "json_schema": '{"type": "object"}'},
    "the batch's own fields": {**HI, "rid": "mine", "stream": False, "stream_options": {"x": 1}},
}  # fmt: skip


@pytest.mark.parametrize("name", VALID)
async def test_a_valid_line_is_answered(side: TokenizerSide, name: str) -> None:
    answer = await side.execute(VALID[name])
    assert answer.response.status_code == 200, answer.response.body
    assert side.sent
    assert all(parse_rid(sent.rid) == parse_rid(answer.response.request_id) for sent in side.sent)


_NULLABLE = {
    "messages": [
        "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens",
        "metadata", "modalities", "model", "n", "parallel_tool_calls", "presence_penalty",
        "reasoning_effort", "response_format", "seed", "stop", "store", "stream",
        "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
        "functions", "function_call",
    ],
    "prompt": [
        "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "model",
        "n", "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix",
        "temperature", "top_p", "user",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", _NULLABLE)
async def test_null_is_as_good_as_nothing(side: TokenizerSide, kind: str) -> None:
    body = {"prompt": "hi"} if kind == "prompt" else HI
    await side.execute(body)
    [plain] = side.sent
    answer = await side.execute({**body, **dict.fromkeys(_NULLABLE[kind])})
    assert answer.response.status_code == 200, answer.response.body
    [sent] = side.sent
    assert sent.sampling_params == plain.sampling_params
    assert list(sent.input_ids) == list(plain.input_ids)


async def test_nulls_within_are_left_out_but_for_the_user_s_own_data(side: TokenizerSide) -> None:
    function = {"name": "f", "description": None, "strict": None, "parameters": SCHEMA}
    body = {
        "messages": [
            {"role": "user", "name": None, "content": [{"type": "text", "text": "a", "url": None}]},
            {"role": "assistant", "content": None, "tool_calls": None, "name": None},
            {"role": "user", "content": "b"},
        ],
        "tools": [{"type": "function", "function": function}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "description": None, "strict": None, "schema": SCHEMA},
        },
    }
    answer = await side.execute(body)
    assert answer.response.status_code == 200, answer.response.body
    [sent] = side.sent
    assert '"default": null' in sent.sampling_params.json_schema


async def test_a_line_is_not_changed_by_its_execution(side: TokenizerSide) -> None:
    schema = {"title": "T", "properties": {"strict": {"default": True}, "a": {}}}
    body = {**HI, "response_format": {"type": "json_schema", "schema": schema}}
    before = repr(body)
    first = await side.execute(body)
    assert first.response.status_code == 200
    assert repr(body) == before


@pytest.mark.parametrize("body", [HI, {**HI, "n": 2}, {"prompt": ["a", "b"]}])
async def test_a_request_that_the_engine_gives_up_is_one_to_try_again(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    """SGLang's answer to a request that still waited has nothing but this."""
    reason = {"type": "abort", "message": "Abort in waiting queue"}
    kept = {"id": "x", "finish_reason": reason, "completion_tokens": 0}
    monkeypatch.setattr(side, "meta", lambda meta: kept)
    answer = await side.execute(body)
    assert answer.response.status_code == 503
    assert answer.observation.aborted == "Abort in waiting queue"


async def test_so_is_one_that_the_engine_does_not_take(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(meta: dict[str, Any]) -> dict[str, Any]:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "The request queue is full.")

    monkeypatch.setattr(side, "meta", full)
    answer = await side.execute(HI)
    assert answer.response.status_code == 503
    assert answer.observation.aborted == "The request queue is full."


async def test_what_fails_behind_the_checks_is_an_error_of_its_line(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(meta: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("a fault")

    monkeypatch.setattr(side, "meta", fails)
    response = (await side.execute(HI)).response
    assert response.status_code == 500
    assert response.body["error"]["message"] == ("Line 7: an error while it was executed: a fault")


@pytest.mark.parametrize("error", [TypeError, KeyError, RecursionError, ZeroDivisionError])
async def test_what_fails_while_it_is_rendered_is_for_the_user_to_mend(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error("odd")

    chat = side.executor._conversion.route(Endpoint.CHAT).handler
    monkeypatch.setattr(chat, "_convert_to_internal_request", fails)
    found = await side.error({**HI, "chat_template_kwargs": {"x": 1}})
    assert found["param"] == "chat_template_kwargs"
    assert found["message"].startswith("Line 7: the request cannot be rendered with its ")


async def test_rendering_does_not_hold_up_the_loop_and_has_an_end(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hangs(*_: Any, **__: Any) -> None:
        release.wait(60)
        raise ValueError("too late")

    chat = side.executor._conversion.route(Endpoint.CHAT).handler
    monkeypatch.setattr(executor, "PREPARE_SECONDS", 0.1)
    monkeypatch.setattr(side.executor, "_threads", BoundedThreads(0.1))
    with monkeypatch.context() as patch:
        patch.setattr(chat, "_convert_to_internal_request", hangs)
        hanging = [asyncio.create_task(side.executor.execute(*_line(n))) for n in range(5)]
        for answer in await asyncio.gather(*hanging):
            assert answer.response.status_code == 400
            assert "took more than" in answer.response.body["error"]["message"]
    # All threads hang by now, and the next line is answered all the same.
    assert (await side.execute(HI)).response.status_code == 200
    release.set()


def _line(number: int) -> tuple[Any, str]:
    from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint

    line = BatchLine(line=1, custom_id="a", method="POST", url=Endpoint.CHAT, body=HI)
    return line, f"blendserve-b-0-{number:08d}"
