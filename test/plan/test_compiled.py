"""Compiled loops work where their code can be kept nowhere.

pytest test/plan/test_compiled.py
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.blendserve.compiled import NUMBER, compiled


def test_code_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    # numba keeps code beside the module's file; this function has none.
    exec(compile("def twice(x):\n    return 2.0 * x\n", "<no file>", "exec"), names)
    twice: Callable[[float], float] = compiled(NUMBER, NUMBER)(names["twice"])
    assert twice(1.5) == 3.0
