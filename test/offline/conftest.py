"""A real model on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sglang.srt.blendserve.offline.models import find_model


@pytest.fixture(scope="session")
def model() -> str:
    """The folder of SmolLM2-135M-Instruct; skips where nobody has fetched it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parent = Path(os.environ.get("BLENDSERVE_MODELS", cache / "sglang-blendserve" / "models"))
    folder = parent / find_model("smollm2").folder
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; `sglang-blendserve fetch-model smollm2` makes it")
    return str(folder)
