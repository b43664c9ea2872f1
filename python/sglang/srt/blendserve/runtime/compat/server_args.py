"""How the installed SGLang keeps its server arguments: `release`, one file a release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.runtime.compat import of_installed
from sglang.srt.blendserve.settings import Settings

if TYPE_CHECKING:
    from sglang.srt.blendserve.runtime.compat import args_0_5_23 as release
else:
    release = of_installed("args")

__all__ = ["make", "release"]


def make(construct: Any, arguments: dict[str, Any]) -> Any:
    """Return the `ServerArgs` of keyword arguments, some of which may be ``blendserve_*``.

    Args:
        construct: SGLang's class of server arguments.
        arguments: of `sglang.Engine`, say.

    Raises:
        TypeError: there is no such argument.
        Refusal: a value of ours is not one that it may have.
    """
    given = dict(arguments)
    settings = Settings.take_from(given)
    return release.make(lambda: construct(**given), settings)
