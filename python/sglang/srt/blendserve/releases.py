"""Which releases of SGLang this package works with, and which one is installed.

SGLang's internals differ from release to release, so the package works with two of them and refuses
all others. An installed version counts as the release in front of its suffixes: ``0.5.23.post1``,
``0.5.23+cu130``, ``0.5.23rc1`` and ``0.5.23.dev12+g1234567`` all count as 0.5.23. The last is what
an editable SGLang calls a commit *before* 0.5.23; what that lacks of 0.5.23 is found when the
plugin looks for every place in SGLang that it hooks into (`hook_check`).

Neither SGLang nor torch is imported here.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

from sglang.srt.blendserve.refusals import Refusal

SUPPORTED = ("0.5.17", "0.5.23")
"""Releases of SGLang that this package works with, oldest first."""


def found() -> str | None:
    """Return the version of the installed SGLang; None where there is none."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def supported() -> str | None:
    """Return the supported release that the installed SGLang counts as; None if it is no such."""
    try:
        base = Version(found() or "").base_version
    except InvalidVersion:
        return None
    return base if base in SUPPORTED else None


def require() -> str:
    """Return the supported release that the installed SGLang counts as.

    Raises:
        Refusal: it is no such.
    """
    if (release := supported()) is None:
        raise _refusal()
    return release


def _refusal() -> Refusal:
    return Refusal(
        f"sglang-blendserve works with sglang {' and '.join(SUPPORTED)}, and found "
        f"{found() or 'none'}: run `pip install sglang=={SUPPORTED[-1]}`, or keep this plugin out "
        "of SGLang with SGLANG_PLUGINS=none."
    )
