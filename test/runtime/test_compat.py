"""The seams of every release have the same names and the same parameters.

pytest test/runtime/test_compat.py
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "python/sglang/srt/blendserve/runtime/compat"
FILES = sorted(ROOM.glob("release_*.py"))


def interface(text: str) -> dict[str, str]:
    """The public names of a module, each with what is to be the same: a function's parameters."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = ast.unparse(node.args)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = "class"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = "value"
    return {name: what for name, what in found.items() if not name.startswith("_")}


def test_there_is_a_file_for_either_release() -> None:
    assert [path.stem for path in FILES] == ["release_0_5_17", "release_0_5_23"]


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.stem)
def test_the_releases_have_the_same_seams(path: Path) -> None:
    assert interface(path.read_text("utf-8")) == interface(FILES[0].read_text("utf-8"))


def test_a_difference_would_be_seen() -> None:
    one, other = "def seam(req): ...", "def seam(req, tokens): ...\nVALUE = 1"
    assert interface(one) != interface(other)
    assert interface("VALUE: int = 1\nclass A: ...") == {"VALUE": "value", "A": "class"}


def test_the_rest_of_the_runtime_asks_for_no_release() -> None:
    asking = [
        path.name
        for path in ROOM.parent.rglob("*.py")
        if path.parent != ROOM and "importlib.metadata" in path.read_text("utf-8")
    ]
    assert asking == []
