"""``benchmark/structure.py`` counts what it says it counts, on a package of three files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmark" / "structure.py"
PACKAGE = "sglang.srt.blendserve"

FILES = {
    "__init__.py": '"""A package."""\n',
    "policy/__init__.py": '"""A room."""\n',
    "policy/pace.py": f'''"""A pace.

It has three lines of docstring.
"""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from {PACKAGE}.policy.step import Step
LEAST = 4
NAME = "pace"
class Tuning:
    share: float = 0.5
    whole: bool = False
    name: str = "pace"
def make(step: "Step") -> int:
    # The longest function.
    return LEAST
''',
    "policy/step.py": f"""from {PACKAGE}.policy.pace import LEAST
class Step:
    least = LEAST
def make() -> Step:
    return Step()
""",
}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


def static(root: Path, *arguments: str) -> dict[str, Any]:
    for name, text in FILES.items():
        path = root.joinpath("python", *PACKAGE.split("."), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    out = root / "out.json"
    done = run("static", "--root", root, "--json", out, *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())["static"]
    return found


def test_static_counts_a_small_package(tmp_path: Path) -> None:
    found = static(tmp_path, "--files", "policy/p*.py")
    assert found["total"] == {"files": 4, "lines": 23, "code_lines": 16, "constants": 3}
    assert found["constants"] == {"policy/pace.py": ["LEAST", "Tuning.share", "Tuning.whole"]}
    assert found["files"] == {"policy/pace.py": {"lines": 16, "code_lines": 11, "constants": 3}}
    assert found["circles"] == {
        "top": [],
        "top+function": [],
        "all": [["policy.pace", "policy.step"]],
    }
    assert found["ownership"] == [["policy.pace", "policy.step"]]
    assert found["one_importer"] == {"policy.pace": "policy.step", "policy.step": "policy.pace"}
    assert found["longest_functions"][0] == {"lines": 3, "file": "policy/pace.py", "name": "make"}
    assert found["reused_names"] == {"make": ["function policy/pace.py", "function policy/step.py"]}


def test_a_pattern_that_matches_no_file_is_refused() -> None:
    done = run("static", "--files", "policy/nothing.py")
    assert done.returncode == 2
    assert "no file of the package matches policy/nothing.py" in done.stderr


def test_the_figures_of_the_first_version_are_kept() -> None:
    path = ROOT / "benchmark" / "results" / "structure-0.1.0.json"
    before = json.loads(path.read_text())
    assert before["static"]["total"]["lines"] == 21156
    assert before["way"]["server"]["files"] == 98
