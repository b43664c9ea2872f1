"""Where the code of compiled loops is kept, and that they work where it can be kept nowhere.

pytest test/plan/test_compiled.py
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from sglang.srt.blendserve.compiled import NUMBER, compiled


def test_code_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    # numba asks for the module's file and its date; this function has none.
    exec(compile("def twice(x):\n    return 2.0 * x\n", "<no file>", "exec"), names)
    twice: Callable[[float], float] = compiled(NUMBER, NUMBER)(names["twice"])
    assert twice(1.5) == 3.0


def test_code_is_kept_for_the_user_and_not_beside_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = tmp_path / "site" / "loops.py", tmp_path / "cache"
    source.parent.mkdir()
    source.write_text("def twice(x):\n    return 2.0 * x\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    spec = importlib.util.spec_from_file_location("loops", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert compiled(NUMBER, NUMBER)(module.twice)(1.5) == 3.0
    assert sorted({path.suffix for path in cache.rglob("loops.*")}) == [".nbc", ".nbi"]
    assert not list(source.parent.rglob("*.nb?"))
    assert not numba.config.CACHE_LOCATOR_CLASSES
