"""Imports of the package point down only, and what checks that would see one that does not.

pytest test/packaging/test_architecture.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import architecture
import pytest

Files = dict[str, str]

INNER = f"from {architecture.PACKAGE}"


def check(
    files: Files,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, list[str]]:
    """Exit status and printed lines of the check of a made-up package with these files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(architecture, "FOLDER", folder)
    monkeypatch.setattr(sys, "argv", ["architecture.py"])
    status = architecture.main()
    return status, [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_no_arrow_climbs_and_there_is_no_circle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["architecture.py"])
    status = architecture.main()
    assert status == 0, capsys.readouterr().out


SOUND = {
    "__init__.py": "",
    "cost/model.py": "",
    "plan/tree.py": f"{INNER}.cost import model\n",
    "pool/pool.py": f"import {architecture.PACKAGE}.plan.tree\nimport json\n",
    "policy/select.py": f"{INNER}.pool.pool import Pool\n{INNER}.policy import memory\n",
    "policy/memory.py": "import sglang.srt.managers\n",
}
"""Arrows down, one inside a room, and modules that are none of the package's."""


@pytest.mark.parametrize(
    ("changed", "reported"),
    [
        pytest.param({}, [], id="sound"),
        pytest.param(
            {"plan/tree.py": f"{INNER}.policy.select import Step\n"},
            ["plan.tree -> policy.select", "plan.tree <-> policy.select <-> pool.pool"],
            id="climbs and comes round",
        ),
        pytest.param(
            {"cost/model.py": f"def late():\n    {INNER}.pool import pool\n", "plan/tree.py": ""},
            ["cost.model -> pool.pool"],
            id="inside a function",
        ),
        pytest.param(
            {
                "cost/model.py": "from typing import TYPE_CHECKING\n"
                f"if TYPE_CHECKING:\n    {INNER}.plan.tree import Tree\n"
            },
            ["cost.model -> plan.tree", "cost.model <-> plan.tree"],
            id="for types only",
        ),
        pytest.param(
            {"policy/memory.py": f"{INNER}.policy.select import Step\n"},
            ["policy.memory <-> policy.select"],
            id="a circle in one room",
        ),
        pytest.param(
            {"store/database.py": f"{INNER}.policy.select import Step\n"},
            ["store.database -> policy.select"],
            id="between rooms of one layer",
        ),
    ],
)
def test_what_points_up_or_comes_round_is_reported(
    changed: Files,
    reported: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, lines = check(SOUND | changed, tmp_path, monkeypatch, capsys)
    start = next(at for at, line in enumerate(lines) if line.startswith("arrows that climb"))
    assert [line for line in lines[start:] if "->" in line or "<->" in line] == reported
    assert status == int(bool(reported))


def test_a_folder_that_is_no_room_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = SOUND | {"attic/old.py": ""}
    status, lines = check(files, tmp_path, monkeypatch, capsys)
    assert status == 1
    assert lines == ["rooms that stand in no layer: attic"]
