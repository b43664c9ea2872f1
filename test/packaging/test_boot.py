"""The module that is installed beside SGLang and says where ``sglang.srt.blendserve`` lies.

pytest test/packaging/test_boot.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[2] / "python"
BOOT = PYTHON / "boot"
SOURCE = PYTHON / "sglang" / "srt" / "blendserve"


def run(code: str, *paths: Path) -> list[str]:
    """Lines that a new interpreter prints, which reads no ``.pth`` file and knows these folders."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def sglang(tmp_path: Path) -> Path:
    """A folder with an SGLang: a package, and its namespace package `srt`, as in the releases."""
    (tmp_path / "stock" / "sglang" / "srt").mkdir(parents=True)
    (tmp_path / "stock" / "sglang" / "__init__.py").write_text("__version__ = '0.5.17'")
    return tmp_path / "stock"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """A folder with what a wheel holds, less the package's own modules."""
    folder = tmp_path / "ours" / "sglang_blendserve"
    (folder / "blendserve").mkdir(parents=True)
    (folder / "__init__.py").write_bytes((BOOT / "sglang_blendserve/__init__.py").read_bytes())
    (folder / "blendserve" / "__init__.py").touch()
    (folder / "blendserve" / "one.py").touch()
    yield folder.parent
    assert not (tmp_path / "stock" / "sglang" / "srt" / "blendserve").exists()


WHERE = """
import sglang_blendserve, sglang, sglang.srt.blendserve.one
one = sglang.srt.blendserve.one
print(sglang.__version__, one.__file__, one.__name__, *sglang.srt.blendserve.__path__)
"""


def test_an_installed_package_is_found_beside_sglang(sglang: Path, installed: Path) -> None:
    one = installed / "sglang_blendserve" / "blendserve" / "one.py"
    expected = ["0.5.17", str(one), "sglang.srt.blendserve.one", str(one.parent)]
    assert run(WHERE, sglang, installed) == expected
    assert run(WHERE, installed, sglang) == expected


BEHIND = """
import sys
from importlib.util import spec_from_file_location
class Editable:
    def find_spec(fullname, path=None, target=None):
        if fullname == "sglang":
            folder = {folder!r}
            init = folder + "/__init__.py"
            return spec_from_file_location(fullname, init, submodule_search_locations=[folder])
sys.meta_path.append(Editable)
"""
"""An editable SGLang as setuptools installs it: found by a finder behind Python's own."""


def test_an_installed_package_is_found_beside_an_editable_sglang(
    sglang: Path, installed: Path
) -> None:
    assert run(BEHIND.format(folder=str(sglang / "sglang")) + WHERE, installed)[0] == "0.5.17"


def test_a_second_folder_sglang_on_the_path_hides_an_editable_one(
    sglang: Path, tmp_path: Path
) -> None:
    # Why a wheel has none, and why python/ is not on the path of an editable installation.
    (tmp_path / "second" / "sglang" / "srt" / "blendserve").mkdir(parents=True)
    code = BEHIND.format(folder=str(sglang / "sglang")) + "import sglang; print(sglang.__file__)"
    assert run(code, tmp_path) == [str(sglang / "sglang" / "__init__.py")]
    assert run(code, tmp_path / "second") == ["None"]


def test_a_checkout_is_found_by_its_boot_folder_alone(sglang: Path) -> None:
    code = (
        "import sglang_blendserve, sglang.srt.blendserve as ours\nprint(ours.__file__, *sys.path)"
    )
    found, *path = run(f"import sys; {code}".replace("; ", "\n"), sglang, BOOT)
    assert found == str(SOURCE / "__init__.py")
    assert str(PYTHON) not in path


def test_the_finder_knows_one_name_and_stands_there_once() -> None:
    code = """
import sys, sglang_blendserve
from sglang_blendserve import Finder, install
install()
print(sys.meta_path.index(Finder), sys.meta_path.count(Finder))
for name in ("sglang", "sglang.srt", "sglang.srt.blendserve.cli", "blendserve", "json"):
    print(Finder.find_spec(name))
"""
    assert run(code, BOOT) == ["0", "1", *["None"] * 5]


def test_starting_an_interpreter_imports_next_to_nothing() -> None:
    code = """
import sys
before = set(sys.modules) | {"os"}
import sglang_blendserve
print(*sorted({*sys.modules} - before - {"stat", "posixpath", "genericpath", "_stat", "abc",
      "_abc", "os.path", "_collections_abc"}))
"""
    assert run(code, BOOT) == ["__future__", "sglang_blendserve"]


def test_settings_are_pickled_for_a_child_that_reads_no_pth_file() -> None:
    code = """
import pickle, sys
data = sys.stdin.buffer.read()
assert "sglang_blendserve" not in sys.modules
print(pickle.loads(data))
"""
    from multiprocessing.reduction import ForkingPickler

    import sglang_blendserve
    from sglang.srt.blendserve.settings import Settings

    ForkingPickler.register(Settings, sglang_blendserve._reduce)
    settings = Settings(overlap="chunks")
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        # A plain checkout stands for SGLang, which takes seconds to import.
        env=os.environ | {"PYTHONPATH": f"{PYTHON}{os.pathsep}{BOOT}"},
        input=bytes(ForkingPickler.dumps(settings)),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().strip() == str(settings)
