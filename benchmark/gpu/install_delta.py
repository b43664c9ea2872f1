"""Put this repository's package beside an installed SGLang, without pip and without a network.

    python3 benchmark/gpu/install_delta.py

Does nothing where the package is installed already (also in editable mode).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "sglang_blendserve"


def install(site: Path, repository: Path = REPOSITORY) -> None:
    """Copy the package into ``site``, the folder that holds ``sglang``, with its entry points.

    Raises ValueError if there is no SGLang in ``site``.
    """
    if not (site / "sglang" / "srt" / "server_args.py").is_file():
        raise ValueError(f"{site}: no SGLang there (sglang/srt/server_args.py)")
    source = repository / "python" / "sglang" / "srt" / "blendserve"
    shutil.copytree(source, site / "sglang" / "srt" / "blendserve", dirs_exist_ok=True)
    entry_points = {"sglang.srt.plugins": {"blendserve": "sglang.srt.blendserve.plugin:register"}}
    write_metadata(site, NAME, entry_points)


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
    """Install unless installed; 1 if there is no SGLang."""
    try:
        importlib.metadata.version(NAME)
        return 0
    except importlib.metadata.PackageNotFoundError:
        pass
    found = importlib.util.find_spec("sglang")
    if found is None or found.origin is None:
        print("install_delta.py: sglang is not importable; give --wheels FOLDER", file=sys.stderr)
        return 1
    install(Path(found.origin).resolve().parents[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
