"""Finding the compiled kernels, or saying why there are none.

The extension is compiled for the CPU of the machine that built it. Before it is loaded its
recorded instruction sets are compared with this machine's, since an unknown instruction would end
the process without a word.
"""

from __future__ import annotations

import functools
import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType

_RECORD = Path(__file__).with_name("native_isa.json")
_CPUINFO = Path("/proc/cpuinfo")


def missing_features() -> list[str]:
    """Return the instruction sets that the extension uses and this CPU has not (Linux on x86;
    elsewhere none is reported, and the build must have happened on the machine itself)."""
    if not _RECORD.exists() or not _CPUINFO.exists():
        return []
    for line in _CPUINFO.read_text().splitlines():
        if line.startswith("flags"):
            return sorted(set(json.loads(_RECORD.read_text())) - set(line.split()))
    return []


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """Return the extension, or None and the reason why it cannot be used."""
    if missing := missing_features():
        return (
            None,
            f"the kernels were built for a CPU with {', '.join(missing)}, which this one lacks",
        )
    try:
        # The extension's libraries are found because torch has loaded them already.
        importlib.import_module("torch")
        return importlib.import_module("sgl_kernel._native"), ""
    except ImportError as error:
        return None, f"the compiled extension is missing or unusable ({error})"


def warn_if_absent() -> None:
    """Warn, once, when attention will run in plain torch."""
    extension, reason = load()
    if extension is None:
        warnings.warn(
            f"sgl_kernel: {reason}. Attention runs in plain torch, several times slower, and "
            "linear layers, norms and activations stay SGLang's own. To build the kernels, install "
            "a C++ compiler (Debian, Ubuntu: apt-get install g++) and run: "
            'pip install "setuptools>=77,<82" && '
            "pip install -v --no-deps --no-build-isolation --force-reinstall ./sgl-kernel",
            RuntimeWarning,
            stacklevel=2,
        )
