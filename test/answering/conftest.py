"""The core that answers lines, under the command `run` and under the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from both_ways import WAYS, Way

from sglang.srt.blendserve.answering import disk_retry


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Way:
    monkeypatch.setattr(disk_retry, "RETRY_SECONDS", 0.05)
    return WAYS[request.param](tmp_path)
