"""The core that answers lines, under the command `run` and under the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from both_ways import WAYS, Way
from tokenizer_side import TokenizerSide, tokenizer_side

from sglang.srt.blendserve.answering import disk_retry


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Way:
    monkeypatch.setattr(disk_retry, "RETRY_SECONDS", 0.05)
    return WAYS[request.param](tmp_path)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop for a module, as the engine's tokenizer manager belongs to one."""
    return "asyncio"


@pytest.fixture(scope="module")
async def side(model_path: Path, anyio_backend: str) -> AsyncIterator[TokenizerSide]:
    """SGLang's part of an engine in front of its scheduler, with a tool parser."""
    started = tokenizer_side(
        model_path, tool_call_parser="hermes", grammar_backend="llguidance", context_length=8192
    )
    try:
        yield started
    finally:
        await started.close()
