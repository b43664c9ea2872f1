"""What a wheel, a source distribution and an editable wheel of the package hold.

pytest test/packaging/test_wheel.py
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOOT = ROOT / "python" / "boot"
SOURCE = ROOT / "python" / "sglang" / "srt" / "blendserve"


def build(target: str, into: Path, root: Path = ROOT) -> Path:
    """The file that the build backend makes of a checkout: an sdist, a wheel, an editable wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = into.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def tops(files: dict[str, bytes]) -> set[str]:
    """What lies at the top of a wheel: what an installation adds to site-packages."""
    return {name.partition("/")[0] for name in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the wheel of this checkout."""
    return contents(build("wheel", tmp_path_factory.mktemp("wheel")))


def test_a_wheel_puts_nothing_into_sglangs_folder(wheel: dict[str, bytes]) -> None:
    version = importlib.metadata.version("sglang-blendserve")
    info = f"sglang_blendserve-{version}.dist-info"
    assert tops(wheel) == {"sglang_blendserve", "sglang_blendserve.pth", info}


def test_a_wheel_holds_the_package_and_its_data(wheel: dict[str, bytes]) -> None:
    expected = {
        f"sglang_blendserve/blendserve/{path.relative_to(SOURCE).as_posix()}": path.read_bytes()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected["sglang_blendserve/__init__.py"] = (
        BOOT / "sglang_blendserve/__init__.py"
    ).read_bytes()
    found = {name: data for name, data in wheel.items() if name.startswith("sglang_blendserve/")}
    assert found.keys() == expected.keys()
    assert found == expected
    assert wheel["sglang_blendserve.pth"] == b"import sglang_blendserve\n"


def test_a_wheel_asks_for_no_other_sglang_than_the_one_that_is_there(
    wheel: dict[str, bytes],
) -> None:
    (name,) = [name for name in wheel if name.endswith("/METADATA")]
    lines = wheel[name].decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist") and "extra" not in line]
    assert needed == [
        "Requires-Dist: aiohttp>=3.12",
        "Requires-Dist: aiosqlite>=0.22.1",
        "Requires-Dist: sglang>=0.5.17",
        "Requires-Dist: standardwebhooks>=1.0",
    ]
    assert "Requires-Python: <3.14,>=3.11" in lines


def test_a_source_distribution_builds_the_same_wheel(
    tmp_path: Path, wheel: dict[str, bytes]
) -> None:
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.glob("sglang_blendserve-*")
    assert {path.name for path in root.iterdir()} == {
        *("python", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore")
    }
    assert contents(build("wheel", tmp_path / "wheel", root)) == wheel


def test_an_editable_installation_has_the_boot_folder_on_the_path(tmp_path: Path) -> None:
    files = contents(build("wheel:editable", tmp_path))
    paths = {name: data.decode().strip() for name, data in files.items() if name.endswith(".pth")}
    # Python reads them by name, so the folder is there when the module is imported.
    assert sorted(paths.items()) == [
        ("_sglang_blendserve.pth", str(BOOT)),
        ("sglang_blendserve.pth", "import sglang_blendserve"),
    ]
    assert {top for top in tops(files) if "." not in top} == set()
