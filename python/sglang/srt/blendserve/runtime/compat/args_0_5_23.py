"""`ServerArgs` of SGLang 0.5.23: a record of what was given, resolved beside its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang.srt.blendserve.settings import Settings

RESOLUTION = "sglang.srt.server_args.ServerArgs.resolve_once"
"""Where SGLang fills in what is not given; called again, it does nothing."""


def make(construct: Callable[[], Any], settings: Settings) -> Any:
    """Return the `ServerArgs` that ``construct`` makes, with ``settings`` on it."""
    server_args = construct()
    server_args.blendserve = settings
    return server_args


def attach_settings(server_args: Any) -> None:
    """Put the policy's settings on ``server_args``, the defaults where none are given."""
    if not hasattr(server_args, "blendserve"):
        server_args.blendserve = Settings()


def is_resolved(server_args: Any) -> bool:
    """Whether `RESOLUTION` has been through."""
    return bool(getattr(server_args, "_resolution_finished", False))


def resolve(server_args: Any) -> None:
    """Let SGLang fill in what is not given, if it has not yet."""
    server_args.resolve_once()


def view(server_args: Any) -> Any:
    """Return what can be asked for the values of fields, as far as they are resolved."""
    from sglang.srt.arg_groups.overrides import resolving_view

    return resolving_view(server_args)


def declare(server_args: Any, values: Mapping[str, Any]) -> None:
    """Set fields before or while they are resolved."""
    from sglang.srt.arg_groups.overrides import declare_resolution

    declare_resolution(server_args, "blendserve", **values)


def publish_for_tokenizer(server_args: Any) -> None:
    """Make ``server_args`` those of this process, which is to have a tokenizer manager."""
    from sglang.srt.runtime_context import publish

    publish(server_args, role="tokenizer")


def attends_in_parallel(fields: Any) -> bool:
    """Whether these fields (see `view`) ask for data parallel attention.

    SGLang rewrites ``--enable-dp-attention --dp-size N`` as ``--attn-dp-size N``.
    """
    old_way = fields.enable_dp_attention and fields.dp_size > 1
    return bool(old_way or fields.attn_dp_size > 1)
