"""Whether the hooks that the plugin registers with SGLang are really in place.

SGLang logs a hook whose target is gone and goes on, as it does with every exception of a plugin.
What is checked here is SGLang itself: that the name leads to a function which calls the hook, or to
the class put in its place. All hooks of this package count, wherever in it they are registered.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.blendserve import releases
from sglang.srt.blendserve.refusals import Refusal

_PACKAGE = "sglang.srt.blendserve."


def require_targets() -> None:
    """Check that what our hooks are for exists, before SGLang applies them.

    Raises:
        Refusal: it does not; names the first one.
    """
    for target, _ in _ours():
        if _resolve(target) is None:
            raise _missing(target)


def require_in_place() -> None:
    """Check that every hook of ours is called, after SGLang has applied them.

    Raises:
        Refusal: one is not; names it.
    """
    for target, hook in _ours():
        if not _leads_to(_resolve(target), hook):
            raise _missing(target)


def withdraw() -> None:
    """Take back all hooks of ours that SGLang has not applied yet."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    for target in {target for target, _ in _ours()}:
        others = [entry for entry in HookRegistry._hooks[target] if not _is_ours(entry[1])]
        if others:
            HookRegistry._hooks[target] = others
        else:
            del HookRegistry._hooks[target]
    # Only there since 0.5.20.
    if (resolution := sys.modules.get("sglang.srt.arg_groups.resolution_hooks")) is not None:
        for hooks in resolution._HOOKS.values():
            hooks[:] = [hook for hook in hooks if not _is_ours(hook)]


def exists(target: str) -> bool:
    """Whether the installed SGLang has ``target``, a dotted name."""
    return _resolve(target) is not None


def _ours() -> Iterator[tuple[str, Any]]:
    """Yield the target of each hook of ours, and the hook."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    for target, hooks in [*HookRegistry._hooks.items()]:
        yield from ((target, hook) for _, hook, _ in hooks if _is_ours(hook))


def _is_ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_PACKAGE)


def _resolve(target: str) -> Any:
    try:
        return pkgutil.resolve_name(target)
    except Exception:  # a module that is imported here may fail in any way
        return None


def _leads_to(found: Any, hook: Callable[..., Any]) -> bool:
    """Whether ``found``, or a function that it wraps, is ``hook`` or calls it.

    SGLang wraps a function in one whose closure holds the hook, and that one in the next.
    """
    while found is not None:
        function = getattr(found, "__func__", found)
        cells = getattr(function, "__closure__", None) or ()
        if function is hook or any(cell.cell_contents is hook for cell in cells):
            return True
        found = getattr(function, "__wrapped__", None)
    return False


def _missing(target: str) -> Refusal:
    return Refusal(
        f"sglang-blendserve cannot hook into {target} of sglang {releases.found()}: it is gone, or "
        "another plugin has taken its place, and the policy would not be what it says. Run "
        f"`pip install sglang=={releases.SUPPORTED[-1]}`, or choose the plugins with "
        "SGLANG_PLUGINS (none keeps this one out)."
    )
