"""What a model has thought stands apart from its answer, as on the online endpoints.

pytest test/answering/test_reasoning.py
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tokenizer_side import TokenizerSide, tokenizer_side

from sglang.srt.blendserve.batch_file.types import Endpoint
from sglang.srt.blendserve.tables import answer_rows

pytestmark = pytest.mark.anyio

HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
async def thinking(model_path: Path, anyio_backend: str) -> AsyncIterator[TokenizerSide]:
    started = tokenizer_side(model_path, reasoning_parser="deepseek-r1")
    started.text = "Let me see.</think>Hello."
    try:
        yield started
    finally:
        await started.close()


async def test_thoughts_stand_apart(thinking: TokenizerSide) -> None:
    body = (await thinking.execute(HI)).response.body
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Let me see.", "Hello.")
    together = (await thinking.execute({**HI, "separate_reasoning": False})).response.body
    assert together["choices"][0]["message"]["content"] == thinking.text


async def test_thoughts_of_a_response_are_an_item(thinking: TokenizerSide) -> None:
    body = (await thinking.execute({"input": "hi"}, url=Endpoint.RESPONSES)).response.body
    thought, message = body["output"]
    assert (thought["type"], message["type"]) == ("reasoning", "message")
    assert thought["content"][0]["text"] == "Let me see."
    assert message["content"][0]["text"] == "Hello."


@pytest.mark.parametrize("url", [Endpoint.CHAT, Endpoint.RESPONSES])
async def test_thoughts_have_a_column_of_their_own(thinking: TokenizerSide, url: Endpoint) -> None:
    given = HI if url is Endpoint.CHAT else {"input": "hi"}
    response = (await thinking.execute(given, url=url)).response
    result = {"id": "r", "custom_id": "a", "response": response.model_dump(), "error": None}
    row = answer_rows._row(result)
    assert (row["reasoning"], row["text"]) == ("Let me see.", "Hello.")
    assert row["completion_tokens"] == 1
