"""What differs between the releases of SGLang that the runtime works with: one file a release.

`seams` is the file of the release that is installed. All of them have the same names with the same
parameters, so the rest of the runtime asks for no release. SGLang's heavy modules are imported when
a seam is used, not with this package. `server_args` is the same for SGLang's server arguments.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from sglang.srt.blendserve import releases


def of_installed(name: str) -> ModuleType:
    """Return the module ``name`` of this package for the installed release, ``name_0_5_23`` say.

    Raises:
        Refusal: we work with no such release.
    """
    return import_module(f"{__name__}.{name}_{releases.require().replace('.', '_')}")


if TYPE_CHECKING:
    from sglang.srt.blendserve.runtime.compat import release_0_5_23 as seams
else:
    seams = of_installed("release")

__all__ = ["of_installed", "seams"]
