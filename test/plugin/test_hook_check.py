"""What `hook_check` sees of hooks that SGLang has applied, or has not.

pytest test/plugin/test_hook_check.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang.srt.blendserve import hook_check
from sglang.srt.blendserve.refusals import Refusal


def ours(hook: Any) -> Any:
    """Return ``hook`` as one of this package's."""
    hook.__module__ = "sglang.srt.blendserve.some.room"
    return hook


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that stands for one of SGLang's, in a registry without other hooks."""

    class Thing:
        def method(self) -> str:
            return "stock"

        @classmethod
        def made(cls) -> str:
            return cls.__name__

        @staticmethod
        def alone() -> str:
            return "stock"

    module: Any = ModuleType("some_place")
    module.Thing, module.function = Thing, lambda: "stock"
    monkeypatch.setitem(sys.modules, "some_place", module)
    hooks, patched = dict(HookRegistry._hooks), set(HookRegistry._patched)
    HookRegistry.reset()
    yield module
    HookRegistry.reset()
    HookRegistry._hooks.update(hooks)
    HookRegistry._patched.update(patched)


def register(target: str, kind: HookType = HookType.AFTER, hook: Any = None) -> None:
    """Register a hook of ours in `some_place`."""
    HookRegistry.register(f"some_place.{target}", hook or ours(lambda *_, **__: None), kind)


def test_hooks_that_are_applied_are_in_place(place: ModuleType) -> None:
    for target in ("Thing.method", "Thing.made", "Thing.alone", "function"):
        for kind in (HookType.AFTER, HookType.AROUND, HookType.BEFORE):
            register(target, kind)
    register("Thing", HookType.REPLACE, ours(type("Ours", (place.Thing,), {})))
    hook_check.require_targets()
    with pytest.raises(Refusal, match="some_place"):
        hook_check.require_in_place()  # they are not applied yet
    HookRegistry.apply_hooks()
    hook_check.require_in_place()


@pytest.mark.parametrize("target", ["Thing.gone", "gone", "gone.method"])
def test_a_target_that_is_gone_is_named(place: ModuleType, target: str) -> None:
    register("function")
    register(target)
    with pytest.raises(Refusal, match=f"cannot hook into some_place.{target} of sglang"):
        hook_check.require_targets()
    HookRegistry.apply_hooks()  # SGLang logs it and goes on
    with pytest.raises(Refusal, match=f"some_place.{target} "):
        hook_check.require_in_place()


def test_a_hook_that_another_one_has_put_aside_is_named(place: Any) -> None:
    register("function")
    register("Thing", HookType.REPLACE, ours(type("Ours", (), {})))
    HookRegistry.apply_hooks()
    hook_check.require_in_place()
    place.Thing = type("Theirs", (), {})
    with pytest.raises(Refusal, match=r"some_place\.Thing "):
        hook_check.require_in_place()


def test_hooks_around_ours_do_not_hide_it(place: Any) -> None:
    register("function")
    HookRegistry.register("some_place.function", lambda *_: None, HookType.AFTER)
    HookRegistry.apply_hooks()
    hook_check.require_in_place()


def test_what_is_withdrawn_is_not_applied(place: Any) -> None:
    theirs: list[str] = []
    register("function", HookType.AROUND, ours(lambda _: "ours"))
    register("Thing.method", HookType.AROUND, ours(lambda *_: "ours"))
    HookRegistry.register("some_place.function", theirs.append, HookType.AFTER)
    hook_check.withdraw()
    HookRegistry.apply_hooks()
    assert (place.function(), place.Thing().method()) == ("stock", "stock")
    assert theirs == ["stock"]
