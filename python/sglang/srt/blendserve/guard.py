"""What stands in SGLang in place of the policy where the policy cannot work.

SGLang stays as released for those who do not ask for the policy. Who does, on the command line or
in a call, is told in one line why it cannot be had: SGLang itself would start without it, or answer
with hundreds of lines about flags it does not know.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from sglang.srt.blendserve import hook_check
from sglang.srt.blendserve.flag_fields import Flags
from sglang.srt.blendserve.refusals import STATUS, Refusal
from sglang.srt.blendserve.settings import POLICY, PREFIX

_ENGINE = "sglang.srt.entrypoints.engine.Engine"


def refuse(reason: Refusal, flags: Iterable[Flags]) -> None:
    """Have SGLang refuse the policy, and all ``flags``, with ``reason``.

    Called by the plugin in place of all its other hooks.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    names = [group.flag_name(name) for group in flags for name in group.names()]

    def after_flags(_: Any, parser: argparse.ArgumentParser) -> None:
        refuse_flags(parser, names, str(reason))

    def before_launch(_: type, server_args: Any, *args: Any, **kwargs: Any) -> None:
        if server_args.schedule_policy == POLICY:
            raise reason

    hooks = (
        ("sglang.srt.server_args.ServerArgs.add_cli_args", after_flags, HookType.AFTER),
        (f"{_ENGINE}._launch_subprocesses", before_launch, HookType.BEFORE),
    )
    for target, hook, kind in hooks:
        if hook_check.exists(target):
            HookRegistry.register(target, hook, kind)
    if hook_check.exists(f"{_ENGINE}.server_args_class"):
        _refuse_keywords(reason)


def refuse_flags(parser: argparse.ArgumentParser, names: Iterable[str], reason: str) -> None:
    """Have ``parser`` end the program where it reads the policy or a flag of ``names``."""

    class Refuse(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            parser.exit(STATUS, f"{reason}\n")

    for action in parser._actions:
        if action.dest == "schedule_policy":
            # The list of choices, which stands in --help, stays SGLang's: this is asked first.
            action.type = _refuse_policy(parser, reason)
    for name in names:
        parser.add_argument(
            name, action=Refuse, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def _refuse_policy(parser: argparse.ArgumentParser, reason: str) -> Any:
    def policy(name: str) -> str:
        if name == POLICY:
            parser.exit(STATUS, f"{reason}\n")
        return name

    return policy


def _refuse_keywords(reason: Refusal) -> None:
    """Have `sglang.Engine` raise ``reason`` where a keyword argument asks for the policy."""
    from sglang.srt.entrypoints.engine import Engine

    stock: Any = Engine.server_args_class

    def construct(**arguments: Any) -> Any:
        ours = any(name.startswith(PREFIX) for name in arguments)
        if ours or arguments.get("schedule_policy") == POLICY:
            raise reason
        return stock(**arguments)

    Engine.server_args_class = staticmethod(construct)
