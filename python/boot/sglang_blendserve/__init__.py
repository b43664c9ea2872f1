"""Lets SGLang, wherever it is installed, have the package ``sglang.srt.blendserve``.

The package's files do not lie in SGLang's folder: a second folder ``sglang`` on the path hides an
SGLang that is installed in editable form. Importing this module puts a finder in front of
``sys.meta_path`` that says where they lie. ``sglang_blendserve.pth`` imports it when an interpreter
starts. The console script and SGLang's entry point are in here too, for places whose ``.pth`` files
Python does not read (``pip install --target``).

This runs at the start of every Python process of an environment, so it imports nothing at its top
that is not loaded by then.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

PACKAGE = "sglang.srt.blendserve"


def package_folder() -> str:
    """Return the folder with the package's files: the installed one, else that of the checkout."""
    here = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(here, "blendserve")
    if os.path.isdir(installed):
        return installed
    return os.path.join(os.path.dirname(os.path.dirname(here)), *PACKAGE.split("."))


class Finder:
    """An entry of ``sys.meta_path`` that knows one name, ``sglang.srt.blendserve``.

    What lies below the package is found by Python's own finder, on the package's ``__path__``.
    """

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the package lies; None for any other name."""
        if fullname != PACKAGE:
            return None
        from importlib.util import spec_from_file_location

        folder = package_folder()
        init = os.path.join(folder, "__init__.py")
        return spec_from_file_location(fullname, init, submodule_search_locations=[folder])


def install() -> None:
    """Put the finder in front, unless it is there."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)


def without_sglang() -> None:
    """Let this process import the package without SGLang, whose own import takes seconds and half a
    gigabyte. For processes that only plan; call it before the package's first import."""
    from types import ModuleType

    for name in ("sglang", "sglang.srt"):
        if name not in sys.modules:
            package = sys.modules[name] = ModuleType(name)
            package.__path__ = []


def main() -> int:
    """Run the console script ``sglang-blendserve``; return its exit status."""
    try:
        from sglang.srt.blendserve.cli import main as run_command
    except KeyboardInterrupt:  # before the command can say so itself
        print("Stopped.", file=sys.stderr)
        return 130
    return run_command()


def batch(rows: Any, model_path: str, **options: Any) -> Any:
    """Answer rows with a model: dicts in, dicts out, as they are answered; or a Ray Dataset.

        for row in sglang_blendserve.batch(rows, "MODEL", engines=2): ...

    See `sglang.srt.blendserve.run.rows.batch`, which has all arguments.
    """
    from sglang.srt.blendserve.run.rows import batch as answer

    return answer(rows, model_path, **options)


def register() -> None:
    """Put the plugin into SGLang, which calls this in each of its processes.

    Raises RuntimeError if the plugin does not work with the installed SGLang.
    """
    from multiprocessing.reduction import ForkingPickler

    from sglang.srt.blendserve.plugin import register as register_plugin
    from sglang.srt.blendserve.settings import Settings

    ForkingPickler.register(Settings, _reduce)
    register_plugin()


def _reduce(settings: Any) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
    """Pickle for a child process whose ``.pth`` files are not read: it imports this module first.

    SGLang's engine sends its arguments, our settings among them, before it loads plugins there.
    """
    import pickle

    return _restore, (pickle.dumps(settings),)


def _restore(data: bytes) -> Any:
    import pickle

    return pickle.loads(data)


install()
