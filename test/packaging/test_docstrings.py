"""Docstrings: every public thing has one, and each can be read without the one above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from architecture import FOLDER, PACKAGE, modules

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

LEANING = re.compile(r"(The same|As (of|in|above)|See|Those|These|That|Likewise|Ditto|Its|Their)\b")
"""Beginnings that point to another docstring."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string that stands alone: in a module, a class or a function."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            for statement in node.body:
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        yield statement.lineno, text


def foreign_names(tree: ast.Module) -> set[str]:
    """Names that a module imports from SGLang's own modules."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            own = f"{node.module}.".startswith(f"{PACKAGE}.")
            if node.module.split(".")[0] == "sglang" and not own:
                found |= {alias.asname or alias.name for alias in node.names}
    return found


def needs_none(function: ast.AST, owner: ast.ClassDef | None, foreign: set[str]) -> bool:
    """Whether the class explains a function: a protocol's stub, or SGLang's method overridden."""
    if owner is None or not isinstance(function, FUNCTIONS):
        return False
    stub = len(function.body) == 1 and ast.unparse(function.body[0]) == "..."
    bases = {ast.unparse(base).split(".")[0] for base in owner.bases}
    return stub or bool(bases & foreign)


def public(node: ast.Module | ast.ClassDef) -> Iterator[tuple[ast.AST, ast.ClassDef | None]]:
    """Public classes, functions and methods below ``node``, each with the class it stands in."""
    owner = node if isinstance(node, ast.ClassDef) else None
    for child in node.body:
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)) and not child.name.startswith("_"):
            yield child, owner
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def undocumented(text: str) -> list[str]:
    """What is public in a module and has no docstring."""
    tree = ast.parse(text)
    foreign = foreign_names(tree)
    found = [] if ast.get_docstring(tree) else ["the module"]
    for node, owner in public(tree):
        assert isinstance(node, (*FUNCTIONS, ast.ClassDef))
        if not ast.get_docstring(node) and not needs_none(node, owner, foreign):
            found.append(f"line {node.lineno}: {node.name}")
    return found


def leaning(text: str) -> list[str]:
    """Docstrings, those of attributes too, that begin as if another one stood above."""
    return [
        f"line {line}: {docstring.splitlines()[0]}"
        for line, docstring in docstrings(ast.parse(text))
        if LEANING.match(docstring)
    ]


def everywhere(find: Callable[[str], list[str]]) -> list[str]:
    """What ``find`` finds in the files of the package."""
    return [
        f"{path.relative_to(FOLDER)}, {one}"
        for path in modules().values()
        for one in find(path.read_text(encoding="utf-8"))
    ]


def test_every_public_thing_has_a_docstring() -> None:
    assert everywhere(undocumented) == []


def test_no_docstring_leans_on_the_one_above() -> None:
    assert everywhere(leaning) == []


def test_what_the_check_finds() -> None:
    text = '''
from typing import Protocol
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.blendserve.pool.request_pool import RequestPool

class Stub(Protocol):
    """What is asked of an engine."""
    tokens: int
    """As of `Engine`."""
    def ready(self) -> bool: ...

class Ours(Scheduler):
    """A scheduler."""
    def on_idle(self): return 1

class Pool(RequestPool):
    """The same of one request."""
    def _hidden(self): return 1
    def start(self): return 1

def plan(): return 1
'''
    assert undocumented(text) == ["the module", "line 19: start", "line 21: plan"]
    assert sorted(leaning(text)) == [
        "line 17: The same of one request.",
        "line 9: As of `Engine`.",
    ]
