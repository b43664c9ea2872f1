"""Shared fixtures: a real store in a temporary directory, and the file that most tests upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang.srt.blendserve.batch.store import Store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "batch-api"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    opened = Store(directory)
    yield opened
    opened.close()
