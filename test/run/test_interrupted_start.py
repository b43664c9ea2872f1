"""Ctrl-C while ``run`` still imports its modules."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from sglang.srt.blendserve import cli


def test_ctrl_c_while_modules_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert cli.main(["run", "-i", "in.jsonl", "-o", "out.jsonl", "--model-path", "m"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"
