"""A model for the tests of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prompt_lines import TEMPLATE


@pytest.fixture(scope="session")
def odd_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that transformers alone does not load as it is."""
    folder = tmp_path_factory.mktemp("odd") / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((tiny_model / "tokenizer_config.json").read_text())
    config.update(tokenizer_class="LlamaTokenizer", add_bos_token=True)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "odd.jinja").write_text(TEMPLATE)
    return folder
