"""`ServerArgs` of SGLang 0.5.17: a dataclass that resolves its fields as it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from sglang.srt.blendserve.settings import Settings

RESOLUTION = "sglang.srt.server_args.ServerArgs.__post_init__"
"""Where SGLang fills in what is not given; called once."""

_given: ContextVar[Settings | None] = ContextVar("given", default=None)


def make(construct: Callable[[], Any], settings: Settings) -> Any:
    """Return the `ServerArgs` that ``construct`` makes, with ``settings`` on it."""
    token = _given.set(settings)
    try:
        return construct()
    finally:
        _given.reset(token)


def attach_settings(server_args: Any) -> None:
    """Put the policy's settings on ``server_args``, the defaults where none are given."""
    server_args.blendserve = _given.get() or Settings()


def is_resolved(server_args: Any) -> bool:
    """Whether `RESOLUTION` has been through."""
    return False


def resolve(server_args: Any) -> None:
    """Let SGLang fill in what is not given, if it has not yet."""


def view(server_args: Any) -> Any:
    """Return what can be asked for the values of fields, as far as they are resolved."""
    return server_args


def declare(server_args: Any, values: Mapping[str, Any]) -> None:
    """Set fields before or while they are resolved."""
    for name, value in values.items():
        setattr(server_args, name, value)


def publish_for_tokenizer(server_args: Any) -> None:
    """Make ``server_args`` those of this process, which is to have a tokenizer manager."""
    from sglang.srt.server_args import set_global_server_args_for_tokenizer

    set_global_server_args_for_tokenizer(server_args)


def attends_in_parallel(fields: Any) -> bool:
    """Whether these fields (see `view`) ask for data parallel attention."""
    return bool(fields.enable_dp_attention)
