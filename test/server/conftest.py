"""Shared fixtures: a real store in a temporary directory, and the file that most tests upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fault_places import GOOD, INPUT, Place, answer_of, engine_for
from scripted import serve

from sglang.srt.blendserve.answering import disk_retry, loop


@pytest.fixture(params=["validating", "in progress", "finalizing"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    held = Place(request.param)
    held.install(monkeypatch)
    return held


@pytest.fixture
async def undisturbed(tmp_path: Path, anyio_backend: str) -> dict[str, Any]:
    engine = engine_for(Place("nowhere"))
    async with serve(tmp_path / "undisturbed", engine) as service:
        batch = await service.finish((await service.submit(INPUT)).id)
        output, _ = await service.result_lines(batch)
        assert [one["custom_id"] for one in output] == GOOD
        return {one["custom_id"]: answer_of(one) for one in output}


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_retry, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(loop, "DOUBT_SECONDS", 0.05)
