"""What is noted of a request that the engine gives up.

pytest test/answering/test_observer.py
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException

from sglang.srt.blendserve.answering.observer import ObservedTokenizerManager, observe

pytestmark = pytest.mark.anyio

REASON = {"type": "abort", "message": "Abort in waiting queue"}


class Manager:
    """A tokenizer manager whose requests end with the given ``meta_info``."""

    model_config = SimpleNamespace(vocab_size=100)
    tokenizer = None

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta

    async def generate_request(self, request: Any, raw_request: None) -> AsyncIterator[Any]:
        yield {"text": "", "meta_info": self.meta}


@pytest.mark.parametrize(
    "meta",
    [
        # As SGLang 0.5.17 answers one that still waited, and one that ran.
        {"id": "r", "finish_reason": REASON, "completion_tokens": 0},
        {"id": "r", "finish_reason": REASON, "completion_tokens": 3, "prompt_tokens": 2},
    ],
)
async def test_a_request_that_was_given_up_is_told_from_one_that_failed(
    meta: dict[str, Any],
) -> None:
    from sglang.srt.managers.io_struct import GenerateReqInput

    seen = observe("r")
    manager: Any = ObservedTokenizerManager(Manager(meta), keep_prompts=False)  # type: ignore[arg-type]
    request = GenerateReqInput(input_ids=[1, 2], sampling_params={"max_new_tokens": 4})
    with pytest.raises(HTTPException) as refused:
        await anext(manager.generate_request(request))
    assert (refused.value.status_code, seen.aborted) == (503, REASON["message"])
    assert seen.completion_tokens == meta["completion_tokens"]
