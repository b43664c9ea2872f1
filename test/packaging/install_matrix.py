"""Install SGLang and this package in every way that people do, and see that both work.

    .venv/bin/python test/packaging/install_matrix.py
    .venv/bin/python test/packaging/install_matrix.py --venv .venv-0.5.23
    .venv/bin/python test/packaging/install_matrix.py --checkout DIR    another checkout's package

SGLang: its wheel ("plain"), and the wheel's own files as a project in editable form, both ways in
which setuptools does that: a path that is added (the sources lie in a folder of their own), and a
finder that stands last (they lie beside pyproject.toml, as in SGLang's repository). This package:
its wheel, in editable form, and a folder on PYTHONPATH (``pip install --target``).

Each pair is a fresh environment, which sees the other packages of an environment that ``make
install`` made, .venv or .venv-RELEASE; its SGLang is the release that is tried. The table has a
line for each pair, ``ok`` or what is wrong. Exit status 1 if anything is. It takes about four
minutes of processor time a release, most of it for importing SGLang.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SGLANG_WAYS = ("plain", "editable, path", "editable, finder")
OUR_WAYS = ("wheel", "editable")
PAIRS = (*itertools.product(SGLANG_WAYS, OUR_WAYS), ("plain", "target"))
LINE = "{:<9} {:<17} {:<9} {}"

LOOK = """
import contextlib, importlib.metadata, io, json, multiprocessing, runpy, sys

way, script = sys.argv[1:]

def usage(run, what):
    sys.argv = [what, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        run(what, run_name="__main__")
    return out.getvalue().splitlines()[:1]

def answer(run, what):
    # Forked: it has SGLang, whose import takes long, and nothing of ours.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        try:
            return pool.apply(usage, (run, what))
        except Exception as error:
            return str(error)

def look():
    import sglang
    yield "sglang", [sglang.__version__, sglang.__file__ or "a namespace"]
    if way == "nothing":
        return
    yield "console script", answer(runpy.run_path, script)
    if way == "target":  # what SGLang and the console script do there, and nobody else
        import sglang_blendserve
    else:
        yield "python -m", answer(runpy.run_module, "sglang.srt.blendserve.cli")
    import sglang.srt.blendserve
    yield "package", sglang.srt.blendserve.__file__
    (entry,) = importlib.metadata.entry_points(group="sglang.srt.plugins", name="blendserve")
    yield "entry point", callable(entry.load())
    from sglang.srt.blendserve.lengths import shape  # has compiled loops, which are kept somewhere
    from sglang.srt.blendserve.settings import Settings
    if way != "target":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            yield "spawned child", pool.apply(getattr, (Settings(overlap="chunks"), "overlap"))

if __name__ == "__main__":
    for name, value in look():
        print(json.dumps([name, value]), flush=True)
"""

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "sglang"
version = "{version}"

[tool.setuptools.packages.find]
where = ["{where}"]
include = ["sglang*"]
"""


@dataclass(frozen=True)
class Workshop:
    """What all environments of one release are made from.

    Attributes:
        folder: where everything of this release is made.
        version: SGLang's.
        source: site-packages with the release as its wheel was unpacked.
        packages: a folder with links to all other packages there.
        checkout: where this package is.
    """

    folder: Path
    version: str
    source: Path
    packages: Path
    checkout: Path

    @classmethod
    def make(cls, folder: Path, environment: Path, checkout: Path) -> Workshop:
        """Link the packages of an environment, less SGLang, this package and ``.pth`` files."""
        (source,) = environment.glob("lib/python*/site-packages")
        (info,) = source.glob("sglang-*.dist-info")
        packages = folder / "packages"
        packages.mkdir(parents=True)
        for path in source.iterdir():
            if not re.match(r"sglang$|sglang-\d|.*sglang_blendserve[.-]|.*\.pth$", path.name):
                (packages / path.name).symlink_to(path)
        version = info.name.removeprefix("sglang-").removesuffix(".dist-info")
        return cls(folder, version, source, packages, checkout)

    def project(self, way: str) -> Path:
        """A project with the files of SGLang's wheel, to be installed in editable form."""
        root = self.folder / way.replace(", ", "-")
        where = "python" if way == "editable, path" else "."
        if not root.exists():
            shutil.copytree(self.source / "sglang", root / where / "sglang")
            text = PROJECT.format(version=self.version, where=where)
            (root / "pyproject.toml").write_text(text, encoding="utf-8")
        return root

    def wheel(self) -> Path:
        """The wheel of this package, made once a release."""
        folder = self.folder / "wheel"
        if not folder.exists():
            options = ["--no-deps", "--no-build-isolation", "-q"]
            run([sys.executable, "-m", "pip", "wheel", *options, "-w", folder, self.checkout])
        (made,) = folder.glob("*.whl")
        return made


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment, and a folder on PYTHONPATH for what has no place in it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, packages: Path) -> Environment:
        """Make one without pip, which sees ``packages``."""
        venv.create(folder, symlinks=True)
        made = cls(folder)
        (made.site / "packages.pth").write_text(f"{packages}\n", encoding="utf-8")
        return made

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        """Its site-packages."""
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    @property
    def target(self) -> Path:
        """The folder on PYTHONPATH."""
        return self.folder / "target"

    def pip(self, *arguments: str | Path) -> None:
        """Run pip, of this script's interpreter, on this environment."""
        run([sys.executable, "-m", "pip", "-q", "--python", self.python, *arguments])

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the environment would, somewhere else."""
        environment = os.environ | {
            "PYTHONPATH": str(self.target),
            "SGLANG_USE_CPU_ENGINE": "1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        words = list(map(str, command))
        return subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def files(self) -> dict[str, str]:
        """Digests of the files of packages and scripts, less bytecode that is not ours."""
        found = {}
        for top in (self.site, self.folder / "bin"):
            for path in sorted(top.rglob("*")):
                name = path.relative_to(self.folder).as_posix()
                if path.is_dir() and "blendserve" in name:
                    found[name] = "a folder"
                elif path.is_file() and ("__pycache__" not in name or "blendserve" in name):
                    found[name] = digest(path)
        return found


def digest(path: Path) -> str:
    """Digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(command: Sequence[str | Path]) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def lend_bytecode(source: Path, target: Path) -> None:
    """Copy what Python compiled of SGLang, 15 s of processor time; it is used if the dates fit."""
    for folder in source.rglob("__pycache__"):
        shutil.copytree(folder, target / folder.relative_to(source), dirs_exist_ok=True)


def install_sglang(shop: Workshop, place: Environment, way: str) -> Path:
    """Install SGLang; return the folder where its package is."""
    if way == "plain":
        release = f"sglang=={shop.version}"
        install = [sys.executable, "-m", "uv", "pip", "install", "--no-deps"]
        run([*install, "--python", place.python, release])
        lend_bytecode(shop.source / "sglang", place.site / "sglang")
        return place.site / "sglang"
    project = shop.project(way)
    place.pip("install", "--no-deps", "--no-build-isolation", "-e", project)
    (found,) = [*project.glob("sglang"), *project.glob("python/sglang")]
    return found


def install_ours(shop: Workshop, place: Environment, way: str) -> Path:
    """Install this package; return the folder where its files have to be found."""
    if way == "editable":
        place.pip("install", "--no-deps", "--no-build-isolation", "-e", shop.checkout)
        return shop.checkout / "python" / "sglang" / "srt" / "blendserve"
    if way == "target":
        place.pip("install", "--no-deps", "--target", place.target, shop.wheel())
        return place.target / "sglang_blendserve" / "blendserve"
    place.pip("install", "--no-deps", shop.wheel())
    return place.site / "sglang_blendserve" / "blendserve"


def look(place: Environment, way: str) -> dict[str, object]:
    """What a process in the environment finds, in its order, and the last line of its error."""
    program = place.folder / "look.py"
    program.write_text(LOOK, encoding="utf-8")
    script = (place.target if way == "target" else place.folder) / "bin" / "sglang-blendserve"
    done = place.run(place.python, program, way, script)
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    if done.returncode:
        found["error"] = (done.stderr.strip().splitlines() or ["?"])[-1]
    return found


def check(shop: Workshop, place: Environment, sglang: str, ours: str) -> Iterator[str]:
    """Install both, use them and uninstall this package; yield what is wrong."""
    stock = install_sglang(shop, place, sglang)
    before, upstream = place.files(), digest_tree(stock)
    folder = install_ours(shop, place, ours)
    usage = ["usage: sglang-blendserve [-h] [--version] COMMAND ..."]
    release = [shop.version, str(stock / "__init__.py")]
    expected = {
        "sglang": release,
        "console script": usage,
        "python -m": usage,
        "package": str(folder / "__init__.py"),
        "entry point": True,
        "spawned child": "chunks",
    }
    if ours == "target":
        del expected["python -m"], expected["spawned child"]
    yield from differences(expected, look(place, ours))
    if ours == "target":
        return
    place.pip("uninstall", "-y", "sglang-blendserve")
    after = place.files()
    if after != before:
        changed = sorted({name for name, _ in after.items() ^ before.items()})
        yield f"uninstalled: {', '.join(changed[:3])} (of {len(changed)}) left or changed"
    if digest_tree(stock) != upstream:
        yield "uninstalled: SGLang's files have changed"
    yield from differences({"sglang": release}, look(place, "nothing"))


def differences(expected: dict[str, object], found: dict[str, object]) -> Iterator[str]:
    """What is not as expected, up to the error that ended it."""
    for name in [*expected, *(found.keys() - expected.keys())]:
        if found.get(name) != expected.get(name) and ("error" not in found or name in found):
            yield f"{name}: {found.get(name)}"


def digest_tree(folder: Path) -> dict[str, str]:
    """Digests of the files in a folder, less bytecode."""
    return {
        path.relative_to(folder).as_posix(): digest(path)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def environments() -> list[Path]:
    """What ``make install`` made in this checkout."""
    return sorted(path.parent for path in ROOT.glob(".venv*/.installed"))


def main() -> int:
    """Print the table; return 1 if anything in it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, action="append", help="this environment only")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="where this package is")
    args = parser.parse_args()
    failures = 0
    print(LINE.format("SGLang", "installed", "ours", "result"), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for number, environment in enumerate(args.venv or environments()):
            folder = Path(temporary) / str(number)
            shop = Workshop.make(folder, environment.resolve(), args.checkout.resolve())
            for sglang, ours in PAIRS:
                name = f"{sglang}-{ours}".replace(", ", "-")
                place = Environment.make(folder / name, shop.packages)
                wrong = [*check(shop, place, sglang, ours)]
                failures += bool(wrong)
                print(LINE.format(shop.version, sglang, ours, "; ".join(wrong) or "ok"), flush=True)
                shutil.rmtree(place.folder)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
