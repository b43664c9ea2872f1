"""SGLang plugin entry point (group ``sglang.srt.plugins``).

`register` runs in every process SGLang starts, before its heavy modules are imported, so imports
stay inside functions. It is the only place that touches SGLang's hooks and registries:

- ``--schedule-policy blendserve`` and the ``--blendserve-*`` flags on SGLang's own command line,
  the same names as keyword arguments of ``sglang.Engine``
- the scheduler, in place of SGLang's when the policy is chosen
- the prefix cache ``--radix-cache-backend blendserve``, which the policy uses if no other is given
- the offline mark on list calls of ``Engine.generate``
- the batch API in ``launch_server`` (`server.hooks`)
- the start of PD multiplexing, which SGLang 0.5.17 gets wrong (`runtime.overlap.pdmux`)
- the attention backend ``blend_cpu``, which ``--device cpu`` uses if no other is given
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any

from sglang.srt.blendserve import SGLANG_VERSION, job_ids
from sglang.srt.blendserve.settings import FLAGS, POLICY, Settings

_from_command_line: ContextVar[Settings | None] = ContextVar("from_command_line", default=None)


def register() -> None:
    """Put the policy, its flags and its scheduler into SGLang; called in every process.

    Raises RuntimeError if the installed SGLang is not the release this package was written for.
    """
    installed = version("sglang")
    if installed != SGLANG_VERSION:
        raise RuntimeError(
            f"sglang-blendserve works with sglang {SGLANG_VERSION} and found {installed}. "
            f"Its scheduler internals differ between releases; run "
            f"`pip install sglang=={SGLANG_VERSION}`, or keep this plugin out with "
            f"SGLANG_PLUGINS=none."
        )
    from sglang.srt.mem_cache.registry import register_radix_cache_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang.srt.blendserve.runtime.cache.factory import create_cache
    from sglang.srt.blendserve.runtime.cpu.attention import register_cpu_attention
    from sglang.srt.blendserve.runtime.overlap import pdmux
    from sglang.srt.blendserve.runtime.scheduler import BlendScheduler
    from sglang.srt.blendserve.server import hooks as batch_api

    args = "sglang.srt.server_args.ServerArgs"
    HookRegistry.register(f"{args}.__init__", _settings_from_keywords, HookType.AROUND)
    HookRegistry.register(f"{args}.add_cli_args", _add_cli_flags, HookType.AFTER)
    HookRegistry.register(f"{args}.from_cli_args", _settings_from_cli, HookType.AROUND)
    for method in ("generate", "async_generate"):
        HookRegistry.register(
            f"sglang.srt.entrypoints.engine.Engine.{method}", _mark_list_calls, HookType.BEFORE
        )
    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler", BlendScheduler, HookType.REPLACE
    )
    register_radix_cache_backend(POLICY, create_cache)
    register_cpu_attention()
    pdmux.register_repair()
    batch_api.register()


def _settings_from_keywords(
    original: Callable[..., None], server_args: Any, *args: Any, **kwargs: Any
) -> None:
    """Around ``ServerArgs.__init__``: take our settings out, apply the policy's defaults."""
    from sglang.srt.blendserve.runtime.overlap import pdmux

    settings = _from_command_line.get() or Settings.take_from(kwargs)
    chosen = kwargs.get("schedule_policy") == POLICY
    native = kwargs.get("attention_backend") == "torch_native"
    if chosen:
        pdmux.apply_flags(kwargs, settings)
    apart = native or settings.overlap != "off"
    if chosen and (settings.mixed_chunk == "on" or (settings.mixed_chunk == "auto" and not apart)):
        kwargs["enable_mixed_chunk"] = True
    if chosen and not kwargs.get("enable_int8_mamba_checkpoint"):  # takes SGLang's own cache only
        kwargs["radix_cache_backend"] = kwargs.get("radix_cache_backend") or POLICY
    server_args.blendserve = settings  # before the original: afterwards it is read-only
    original(server_args, *args, **kwargs)
    if chosen:
        from sglang.srt.blendserve.runtime import compatibility

        compatibility.check(server_args)


def _settings_from_cli(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """Around ``ServerArgs.from_cli_args``, which passes on the fields it knows and no others."""
    token = _from_command_line.set(Settings(**FLAGS.given(args)))
    try:
        return original(cls, args)
    finally:
        _from_command_line.reset(token)


def _add_cli_flags(_: Any, parser: argparse.ArgumentParser) -> None:
    """After ``ServerArgs.add_cli_args``: our policy among the choices, and our flags."""
    for action in parser._actions:
        if action.dest == "schedule_policy" and action.choices is not None:
            action.choices = [*action.choices, POLICY]
    FLAGS.add_to(parser)


def _mark_list_calls(engine: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any] | None:
    """Before ``Engine.generate``: the requests of a list call are one offline job."""
    if engine.server_args.schedule_policy != POLICY:
        return None
    call = inspect.signature(type(engine).generate).bind(engine, *args, **kwargs)
    given = call.arguments
    inputs = given.get("input_ids") if given.get("prompt") is None else given["prompt"]
    if not isinstance(inputs, list) or not inputs or isinstance(inputs[0], int):
        return None
    if given.get("rid") is not None:
        return None
    job = job_ids.new_job()
    given["rid"] = [job_ids.make_rid(job, len(inputs), index) for index in range(len(inputs))]
    return call.args, call.kwargs
