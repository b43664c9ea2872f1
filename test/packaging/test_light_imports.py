"""Planner, file format and store can be imported where there is neither SGLang nor torch.

pytest test/packaging/test_light_imports.py

``import sglang`` itself runs SGLang's ``__init__``, which imports torch and transformers, so in an
installation every ``sglang.srt.blendserve`` module comes after these. Here the two packages above
ours are empty ones that only say where ours lies: what is imported then is what our rooms ask for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PYTHON = Path(__file__).parents[2] / "python"
ROOMS = ("cost", "plan", "lengths", "pool", "policy", "batch_file", "store")

IMPORT_ALL = """
import importlib, pkgutil, sys, types

source, *rooms = sys.argv[1:]
# Without our finder: the folder that is looked at need not be the installed one.
sys.meta_path = [one for one in sys.meta_path if one.__module__ != "sglang_blendserve"]
for name in ("sglang", "sglang.srt"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [f"{source}/{name.replace('.', '/')}"]
for room in rooms:
    ours = importlib.import_module(f"sglang.srt.blendserve.{room}")
    for module in pkgutil.walk_packages(ours.__path__, f"{ours.__name__}."):
        importlib.import_module(module.name)
print("\\n".join(sys.modules))
"""


def imported_by(*rooms: str, source: Path = PYTHON) -> set[str]:
    """Every module that is there when all of these rooms' are imported."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(source), *rooms],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {*done.stdout.split()}


def heavy(modules: set[str]) -> list[str]:
    """Those of torch and of SGLang, without this package's."""
    ours = ("sglang", "sglang.srt", "sglang.srt.blendserve")
    return sorted(
        name
        for name in modules
        if name.partition(".")[0] in ("torch", "transformers", "sglang")
        and name not in ours
        and not name.startswith("sglang.srt.blendserve.")
    )


def test_the_rooms_below_the_engine_need_neither_sglang_nor_torch() -> None:
    modules = imported_by(*ROOMS)
    for room in ROOMS:
        for path in (PYTHON / "sglang/srt/blendserve" / room).glob("[!_]*.py"):
            assert f"sglang.srt.blendserve.{room}.{path.stem}" in modules
    assert heavy(modules) == []


def test_an_import_of_torch_would_be_seen(tmp_path: Path) -> None:
    room = tmp_path / "sglang" / "srt" / "blendserve" / "room"
    room.mkdir(parents=True)
    for path in (tmp_path / "torch.py", tmp_path / "sglang/srt/managers.py", room / "__init__.py"):
        path.touch()
    (room / "one.py").write_text("import torch")
    (room / "two.py").write_text("import sglang.srt.managers")
    found = heavy(imported_by("room", source=tmp_path))
    assert found == ["sglang.srt.managers", "torch"]
