"""What differs between the releases of SGLang that the runtime works with: one file a release.

`seams` is the file of the release that is installed. All of them have the same names with the same
parameters, so the rest of the runtime asks for no release. SGLang's heavy modules are imported when
a seam is used, not with this package.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from packaging.version import Version

if TYPE_CHECKING:
    from sglang.srt.blendserve.runtime.compat import release_0_5_23 as seams
else:
    _release = Version(version("sglang")).base_version.replace(".", "_")
    seams = import_module(f"{__name__}.release_{_release}")

__all__ = ["seams"]
