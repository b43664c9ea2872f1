"""Every constant of the policy says what it is worth.

pytest test/policy/test_tuning.py
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields

from sglang.srt.blendserve.policy import tuning
from sglang.srt.blendserve.policy.tuning import Tuning


def docstrings() -> dict[str, str]:
    """Field of `Tuning` to the string behind it."""
    (kind,) = (n for n in ast.parse(inspect.getsource(tuning)).body if isinstance(n, ast.ClassDef))
    found = {}
    for field, text in zip(kind.body, kind.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = ast.literal_eval(text.value)
    return found


def test_every_constant_has_a_measurement_or_says_that_it_has_none() -> None:
    texts = docstrings()
    assert set(texts) == {field.name for field in fields(Tuning)}
    measured = {name for name, text in texts.items() if re.search(r"[+-]\d+\.\d %", text)}
    unproven = {name for name, text in texts.items() if "unproven" in text.lower()}
    assert (measured | unproven, measured & unproven) == (set(texts), set())
    assert len(measured) >= 20
