"""SGLang plugin entry point (group ``sglang.srt.plugins``).

`register` runs in every process SGLang starts, before its heavy modules are imported, so imports
stay inside functions. It is the only place that touches SGLang's hooks and registries:

- ``--schedule-policy blendserve`` and the ``--blendserve-*`` flags on SGLang's own command line,
  the same names as keyword arguments of ``sglang.Engine``
- the scheduler, in place of SGLang's when the policy is chosen
- the prefix cache ``--radix-cache-backend blendserve``, which the policy uses if no other is given
- the offline mark on list calls of ``Engine.generate``; long lists are planned as a whole
  (`dispatch.list_calls`)
- the batch API in ``launch_server`` (`server.hooks`)
- the start of PD multiplexing, which SGLang 0.5.17 gets wrong (`runtime.overlap.pdmux`)
- the attention backends ``blend_cpu``, which ``--device cpu`` uses if no other is given, and
  ``blend_flashinfer`` (`runtime.fused`)

SGLang logs and swallows every exception of a plugin. So what goes wrong here, a release that the
package does not work with included, is kept and said to whoever asks for the policy (`guard`).
Where it is chosen, here and in the scheduler's process, `hook_check` sees that no hook is missing.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

from sglang.srt.blendserve import guard, hook_check, job_ids, refusals, releases
from sglang.srt.blendserve.refusals import Refusal
from sglang.srt.blendserve.settings import FLAGS, POLICY, Settings

_ARGS = "sglang.srt.server_args.ServerArgs"

_has_command_line = False
"""Whether this process has read SGLang's command line: a refusal then ends the program."""


def register() -> None:
    """Put the policy, its flags and its scheduler into SGLang; called in every process.

    Where that cannot be done, SGLang refuses the policy with the reason and is else as released.
    """
    try:
        releases.require()
        _register_all()
        return
    except Refusal as refusal:
        reason = refusal
    except Exception as error:  # of any kind: SGLang would log it and start without the policy
        reason = _broken(error)
    if releases.supported() is not None:
        hook_check.withdraw()
    from sglang.srt.blendserve.server import batch_settings

    guard.refuse(reason, (FLAGS, batch_settings.FLAGS))


def _register_all() -> None:
    from sglang.srt.mem_cache.registry import (
        register_radix_cache_backend,
        registered_radix_cache_backends,
    )
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang.srt.blendserve.dispatch import list_calls
    from sglang.srt.blendserve.runtime.cache.factory import create_cache
    from sglang.srt.blendserve.runtime.compat.server_args import release
    from sglang.srt.blendserve.runtime.cpu.attention import register_cpu_attention
    from sglang.srt.blendserve.runtime.fused.attention import register_fused_attention
    from sglang.srt.blendserve.runtime.overlap import pdmux
    from sglang.srt.blendserve.runtime.scheduler import BlendScheduler
    from sglang.srt.blendserve.server import hooks as batch_api

    HookRegistry.register(f"{_ARGS}.add_cli_args", _add_cli_flags, HookType.AFTER)
    HookRegistry.register(f"{_ARGS}.from_cli_args", _settings_from_cli, HookType.AROUND)
    HookRegistry.register(release.RESOLUTION, _resolve, HookType.AROUND)
    for method in ("generate", "async_generate"):
        HookRegistry.register(
            f"sglang.srt.entrypoints.engine.Engine.{method}", _mark_list_calls, HookType.BEFORE
        )
    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler", BlendScheduler, HookType.REPLACE
    )
    if POLICY not in registered_radix_cache_backends():
        register_radix_cache_backend(POLICY, create_cache)
    register_cpu_attention()
    register_fused_attention()
    pdmux.register_repair()
    list_calls.register()
    batch_api.register()
    hook_check.require_targets()
    _take_keywords()


def _broken(error: Exception) -> Refusal:
    said = " ".join(str(error).split())
    return Refusal(
        f"sglang-blendserve could not be set up in sglang {releases.found()} "
        f"({type(error).__name__}: {said}). To see where, run `python -c 'from "
        f"{__name__} import _register_all; _register_all()'`; to keep this plugin out of SGLang, "
        "set SGLANG_PLUGINS=none."
    )


def _take_keywords() -> None:
    """Have `sglang.Engine` take our settings as keyword arguments.

    Plugins are loaded inside its first call, too late to wrap that; the class that it makes of the
    keywords is looked up after that.
    """
    from sglang.srt.entrypoints.engine import Engine

    from sglang.srt.blendserve.runtime.compat.server_args import make

    stock: Any = Engine.server_args_class

    def construct(**arguments: Any) -> Any:
        return make(stock, arguments)

    Engine.server_args_class = staticmethod(construct)


def _settings_from_cli(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """Around ``ServerArgs.from_cli_args``, which passes on the fields it knows and no others."""
    from sglang.srt.blendserve.runtime.compat.server_args import release

    global _has_command_line
    _has_command_line = True
    with refusals.as_exit():
        settings = Settings(**FLAGS.given(args))
        return release.make(lambda: original(cls, args), settings)


def _add_cli_flags(_: Any, parser: argparse.ArgumentParser) -> None:
    """After ``ServerArgs.add_cli_args``: our policy among the choices, and our flags."""
    for action in parser._actions:
        if action.dest == "schedule_policy" and action.choices is not None:
            action.choices = [*action.choices, POLICY]
    FLAGS.add_to(parser)


def _resolve(original: Callable[[Any], None], server_args: Any) -> None:
    """Around SGLang's resolution of its arguments: the policy's defaults, and what it refuses."""
    from sglang.srt.blendserve.runtime.compat.server_args import release

    if release.is_resolved(server_args):
        return
    release.attach_settings(server_args)
    if server_args.schedule_policy != POLICY:
        original(server_args)
    elif _has_command_line:
        with refusals.as_exit():
            _resolve_policy(original, server_args)
    else:
        _resolve_policy(original, server_args)


def _resolve_policy(original: Callable[[Any], None], server_args: Any) -> None:
    from sglang.srt.blendserve.runtime import compatibility
    from sglang.srt.blendserve.runtime.compat.server_args import release

    hook_check.require_in_place()
    fields, settings = release.view(server_args), server_args.blendserve
    compatibility.check(fields, settings)
    release.declare(server_args, _policy_defaults(fields, settings))
    original(server_args)
    compatibility.check(fields, settings)  # SGLang has filled in what was not given


def _policy_defaults(fields: Any, settings: Settings) -> dict[str, Any]:
    """Return the fields of ``ServerArgs`` that the policy sets where they were not given."""
    from sglang.srt.blendserve.runtime.cpu import defaults as cpu_defaults
    from sglang.srt.blendserve.runtime.overlap import pdmux

    values = pdmux.flags(fields, settings)
    apart = fields.attention_backend == "torch_native" or settings.overlap != "off"
    if settings.mixed_chunk == "on" or (settings.mixed_chunk == "auto" and not apart):
        values["enable_mixed_chunk"] = True
    if fields.grammar_backend is None and (grammar := cpu_defaults.grammar_backend(fields.device)):
        values["grammar_backend"] = grammar
    # Checkpoints of that kind take SGLang's own cache only.
    if not fields.enable_int8_mamba_checkpoint and not fields.radix_cache_backend:
        values["radix_cache_backend"] = POLICY
    return values


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
