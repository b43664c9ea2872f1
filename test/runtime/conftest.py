"""What the tests of this folder share: a tiny model; and hypothesis without a deadline, since other
work on the machine must not fail a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from tiny_model import write_tiny_model

settings.register_profile("runtime", deadline=None)
settings.load_profile("runtime")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """Folder of a tiny Llama with random weights."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), Path(model_path))
