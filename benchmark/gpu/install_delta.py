"""Install this repository's package without pip, without a build tool and without a network.

    python3 benchmark/gpu/install_delta.py

The files go where the package's wheel would put them: into the interpreter's own folder for
packages or, where that cannot be written, into the user's. SGLang may lie elsewhere, also on
PYTHONPATH, whose ``.pth`` files Python does not read. Does nothing where the package is installed
already (also in editable mode).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import site
import sys
import sysconfig
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2] / "python"
NAME = "sglang_blendserve"


def install(folder: Path) -> None:
    """Copy the package into ``folder``, whose ``.pth`` files Python reads, with its entry point."""
    shutil.copytree(PYTHON / "boot", folder, dirs_exist_ok=True)
    source = PYTHON / "sglang" / "srt" / "blendserve"
    shutil.copytree(source, folder / NAME / "blendserve", dirs_exist_ok=True)
    write_metadata(folder, NAME, {"sglang.srt.plugins": {"blendserve": f"{NAME}:register"}})


def site_folder() -> Path:
    """Where this interpreter's packages go.

    Raises ValueError if there is no such folder that can be written.
    """
    own = Path(sysconfig.get_path("purelib"))
    if os.access(own, os.W_OK):
        return own
    if not site.ENABLE_USER_SITE:
        raise ValueError(f"{own} cannot be written, and this Python reads no folder of the user's")
    return Path(site.getusersitepackages())


def write_metadata(site: Path, name: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Make ``site`` declare a distribution ``name`` with these entry points, by group and name."""
    info = site / f"{name}-0.0.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.0\n")
    lines = []
    for group, names in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in names.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))


def main() -> int:
    """Install unless installed; 1 if there is no SGLang or no place."""
    try:
        importlib.metadata.version(NAME)
        return 0
    except importlib.metadata.PackageNotFoundError:
        pass
    if importlib.util.find_spec("sglang") is None:
        print("install_delta.py: sglang is not importable; give --wheels FOLDER", file=sys.stderr)
        return 1
    try:
        install(site_folder())
    except (ValueError, OSError) as error:
        print(f"install_delta.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
