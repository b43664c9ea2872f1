"""The install script's checks and the lock files, without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the script reads, without .venv."""
    for name in ("scripts", "requirements", "sgl-kernel"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("build"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def install(clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script with these environment variables."""
    return subprocess.run(
        ["bash", "scripts/install.sh"],
        cwd=clone,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def program(path: Path, text: str) -> str:
    """An executable shell script."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_old_python_is_refused_with_the_packages_to_install(clone: Path) -> None:
    old = program(clone / "bin" / "python3", '[ "$1" = --version ] && echo Python 3.9.2; exit 1')
    done = install(clone, PYTHON=old, BLENDSERVE_DEVICE="cpu")
    assert done.returncode == 3
    assert "needs Python 3.11, 3.12 or 3.13; found Python 3.9.2" in done.stderr
    assert "apt-get install python3.11 python3.11-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_missing_venv_module_is_named(clone: Path) -> None:
    python = program(clone / "bin" / "python3.11", 'case "$*" in *ensurepip*) exit 1;; esac')
    done = install(clone, PYTHON=python, BLENDSERVE_DEVICE="cpu")
    assert done.returncode == 3
    assert "apt-get install python3.11-venv" in done.stderr


def test_full_disk_is_told_before_anything_is_made(clone: Path) -> None:
    program(clone / "bin" / "df", "echo header; echo /dev/x 9000000 7000000 2000000 78% /")
    done = install(clone, PATH=f"{clone / 'bin'}:{os.environ['PATH']}", BLENDSERVE_DEVICE="cpu")
    assert done.returncode == 3
    assert re.search(r"needs about 7 GB of free disk in .* there are 2 GB", done.stderr)
    assert not (clone / ".venv").exists()


def test_wrong_device_is_refused(clone: Path) -> None:
    done = install(clone, BLENDSERVE_DEVICE="tpu")
    assert done.returncode == 3
    assert "BLENDSERVE_DEVICE is 'tpu'; it must be cpu or cuda" in done.stderr


def test_a_release_without_a_package_set_is_refused(clone: Path) -> None:
    done = install(clone, SGLANG="0.5.20", BLENDSERVE_DEVICE="cpu")
    assert done.returncode == 3
    assert "SGLANG is '0.5.20'; it must be one of: 0.5.17 0.5.23" in done.stderr
    assert not list(clone.glob(".venv*"))


def test_each_release_has_an_environment_of_its_own(clone: Path) -> None:
    python = program(clone / "bin" / "python3.11", 'case "$*" in *ensurepip*) exit 1;; esac')
    for release, folder in (("0.5.17", ".venv-0.5.17"), ("0.5.23", ".venv")):
        (clone / folder / "bin").mkdir(parents=True)
        stamp = clone / folder / ".installed"
        stamp.write_text("cuda-0.5.1 x")
        done = install(clone, SGLANG=release, PYTHON=python, BLENDSERVE_DEVICE="cpu")
        assert f"{folder} was made for cuda-0.5.1; making it anew for cpu-{release}" in done.stdout
        assert done.returncode == 3
        assert not (clone / folder).exists()


def test_the_two_sets_pin_the_same_packages() -> None:
    """So that one `requirements/dev.txt` goes with both; torchao is gone from SGLang's own list."""

    def names(release: str) -> set[str]:
        lines = (ROOT / "requirements" / f"cpu-{release}.txt").read_text().splitlines()
        return {line.partition("=")[0].lower() for line in lines if not line.startswith("#")}

    assert names("0.5.17") - names("0.5.23") == {"torchao"}
    assert names("0.5.23") <= names("0.5.17")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_pin_versions_and_name_no_host(lock: Path) -> None:
    pins = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    names = [re.match(r"([\w.-]+)==[\w.+]+( +;.*)?$", pin.partition("  #")[0]) for pin in pins]
    assert [pin for pin, name in zip(pins, names, strict=True) if name is None] == []
    found = [name[1].lower().replace("_", "-") for name in names if name]
    assert len(found) == len(set(found))
    assert found, "no pins"


def test_the_container_file_names_files_of_the_repository() -> None:
    lines = (ROOT / "scripts" / "Dockerfile").read_text().splitlines()
    default = dict(line[4:].split("=") for line in lines if line.startswith("ARG "))
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignore = (ROOT / "scripts" / "Dockerfile.dockerignore").read_text().splitlines()
    assert [name for name in copied if f"!{name}" not in ignore] == []
    assert (ROOT / "requirements" / f"cpu-{default['SGLANG']}.txt").exists()
    assert "requirements/cpu-${SGLANG}.txt" in "".join(lines)
