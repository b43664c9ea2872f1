"""Responses, scores and rerankings of batch lines, up to the engine's door.

    pytest test/answering/test_other_endpoints.py

test/server/test_server.py compares responses and scores with the online endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tokenizer_side import TokenizerSide
from two_releases import OLD

from sglang.srt.blendserve.batch_file.types import Endpoint
from sglang.srt.blendserve.job_ids import parse_rid

pytestmark = pytest.mark.anyio

RESPONSES = Endpoint.RESPONSES
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}

VALID: dict[str, dict[str, Any]] = {
    "text": {"input": "hi"},
    "messages": {"input": [{"role": "user", "content": "hi"}], "max_output_tokens": 16},
    "parts": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
    "instructions": {"input": "hi", "instructions": "Be short.", "temperature": 0},
    "answers of before": {
        "input": [
            {"role": "user", "content": "hi"},
            {
                "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "hello", "annotations": []}],
            },
            {"role": "user", "content": "and now?"},
        ]
    },
    "metadata": {"input": "hi", "metadata": {"a": "b"}, "store": True, "user": "me"},
    "not streamed": {"input": "hi", "stream": False, "background": False},
    "nulls": {"input": "hi", "instructions": None, "previous_response_id": None, "tools": None},
    "default": {"input": "hi", "model": "default"},
    "unused tools": {"input": "hi", "tools": [TOOL], "tool_choice": "none"},
    "schema": {
        "input": "hi",
        "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}},
    },
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "background": ({"input": "hi", "background": True}, "background"),
    "what is stored": ({"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
    "conversation": ({"input": "hi", "conversation": "conv_1"}, "conversation"),
    "template": ({"input": "hi", "prompt": {"id": "pmpt_1"}}, "prompt"),
    "search": ({"input": "hi", "tools": [{"type": "web_search"}]}, "tools.0.type"),
    "type": ({"input": "hi", "max_output_tokens": "many"}, "max_output_tokens"),
    "forced": ({"input": "hi", "tool_choice": "required"}, ""),
    "a chat's cap": ({"input": "hi", "max_tokens": 5}, "max_tokens"),
    "a chat's format": ({"input": "hi", "response_format": {"type": "text"}}, "response_format"),
    "several": ({"input": "hi", "n": 2}, "n"),
    "a seed": ({"input": "hi", "seed": 0}, "seed"),
}


if OLD:  # SGLang 0.5.17 does not take what it has answered itself
    del VALID["answers of before"]


@pytest.mark.parametrize("name", VALID)
async def test_responses_are_answered(side: TokenizerSide, name: str) -> None:
    answer = await side.execute(VALID[name], url=RESPONSES)
    body = answer.response.body
    assert answer.response.status_code == 200, body
    [sent] = side.sent
    assert parse_rid(sent.rid) is not None
    assert body["object"] == "response"
    assert body["id"].startswith("resp_")
    assert sent.rid not in str(body)
    [message] = body["output"]
    assert message["content"][0]["text"] == "a"
    # SGLang 0.5.17 has the names of chats here.
    assert body["usage"]["completion_tokens" if OLD else "output_tokens"] == 1
    assert answer.observation.completion_tokens == 1
    assert answer.observation.prompts[0].size == len(sent.input_ids)


@pytest.mark.parametrize("name", REFUSED)
async def test_responses_that_cannot_be_had_are_refused(side: TokenizerSide, name: str) -> None:
    body, param = REFUSED[name]
    found = await side.error(body, url=RESPONSES)
    assert (found["param"] or "") == param
    assert found["message"].startswith("Line 7: ")


async def test_a_response_sends_what_a_chat_sends(side: TokenizerSide) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    await side.execute({"messages": messages, "temperature": 0})
    [chat] = side.sent
    given = {"input": messages[1:], "instructions": "s", "temperature": 0}
    await side.execute(given, url=RESPONSES)
    [response] = side.sent
    assert list(response.input_ids) == list(chat.input_ids)


async def test_a_response_is_rendered_once(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, calls = side.manager.tokenizer, []
    render = tokenizer.apply_chat_template

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return render(*arguments, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    await side.execute({"input": "hi"}, url=RESPONSES)
    assert len(calls) == 1


async def test_a_response_that_is_given_up_is_no_answer(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's handler answers a cancellation, as if a client were gone."""

    async def never(*_: Any) -> AsyncIterator[dict[str, Any]]:
        await asyncio.Event().wait()
        yield {}

    monkeypatch.setattr(side.manager, "_wait_one_response", never)
    task = asyncio.ensure_future(side.execute({"input": "hi"}, url=RESPONSES))
    await asyncio.sleep(0.3)
    assert len(side.sent) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_is_kept_of_a_response(side: TokenizerSide) -> None:
    await side.execute({"input": "hi", "store": True}, url=RESPONSES)
    route = side.executor._conversion.route(RESPONSES)
    for answer in (route.handler._answer, route.handler._begin):  # type: ignore[union-attr]
        handler: Any = answer.__self__  # type: ignore[attr-defined]
        assert (handler.msg_store, handler.response_store) == ({}, {})


async def test_scores_are_asked_for_under_the_line_s_id(side: TokenizerSide) -> None:
    def scored(meta: dict[str, Any]) -> dict[str, Any]:
        logprobs = [[(-0.5, 5, "a"), (-1.0, 6, "b")]]
        return {**meta, "output_token_ids_logprobs": logprobs, "completion_tokens": 0}

    side.meta = scored
    body = {"query": "q", "items": ["x", "y z"], "label_token_ids": [5, 6], "apply_softmax": True}
    answer = await side.execute(body)
    assert answer.response.status_code == 200, answer.response.body
    places = [parse_rid(one.rid) for one in side.sent]
    assert len(places) == 2
    assert all(place is not None and place.job == "a" * 32 for place in places)
    scores = answer.response.body["scores"]
    assert len(scores) == 2
    assert sum(scores[0]) == pytest.approx(1)
    assert answer.response.body["id"].startswith("score-")
    assert answer.observation.prompt_tokens == 4


@pytest.mark.parametrize(
    "body",
    [
        {"query": "q", "items": ["x"]},
        {"query": "q", "items": [], "label_token_ids": [5]},
        {"query": "q", "items": ["x"], "label_token_ids": [1 << 30]},
        {"query": "q", "items": ["x"], "label_token_ids": [5], "item_embed_overrides": [[[1.0]]]},
        {"query": "q", "documents": ["x"], "top_n": 0},
        {"query": " ", "documents": ["x"]},
        {"query": "q", "documents": []},
    ],
)
async def test_scores_and_rerankings_that_cannot_be_had_are_refused(
    side: TokenizerSide, body: dict[str, Any]
) -> None:
    assert (await side.error(body))["message"].startswith("Line 7: ")


RERANKER = """Judge the document by the query. Note that the answer can only be "yes" or "no".
Query: {{ messages[0]["content"] }} Document: {{ messages[1]["content"] }}"""


async def test_rerankings_are_asked_for_under_the_line_s_id(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As models of this kind are trained: by the chance that they say yes."""
    from sglang.srt.entrypoints.openai import serving_rerank

    rendered = []
    render = serving_rerank._render_jinja_chat_template

    def counted(*arguments: Any, **options: Any) -> str:
        rendered.append(options)
        return str(render(*arguments, **options))

    monkeypatch.setattr(serving_rerank, "_render_jinja_chat_template", counted)
    chances = iter([[(-2.0, 5, "y"), (-0.1, 6, "n")], [(-0.1, 5, "y"), (-2.0, 6, "n")]])

    def scored(meta: dict[str, Any]) -> dict[str, Any]:
        return {**meta, "output_token_ids_logprobs": [next(chances)], "completion_tokens": 0}

    side.meta = scored
    monkeypatch.setattr(side.manager.tokenizer, "chat_template", RERANKER)
    monkeypatch.setattr(
        "sglang.srt.entrypoints.openai.serving_rerank._get_yes_no_token_ids", lambda _: (5, 6)
    )
    monkeypatch.setattr(side.executor._conversion, "_routes", {})  # made anew with these ids
    answer = await side.execute({"query": "rivers", "documents": ["stones", "streams"]})
    body = answer.response.body
    assert answer.response.status_code == 200, body
    assert [one["document"] for one in body["results"]] == ["streams", "stones"]
    assert body["results"][0]["score"] > 0.8
    assert body["usage"]["prompt_tokens"] == answer.observation.prompt_tokens == 4
    assert body["id"].startswith("rerank-")
    assert [parse_rid(one.rid) is not None for one in side.sent] == [True, True]
    assert len(rendered) == 2  # each document once, and off the event loop
