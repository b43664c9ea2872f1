"""Console script ``sglang-blendserve``: one subcommand a file, imported only when it is called.

Start-up of ``--help`` must not pay for torch, so a command is named here by its module and its
module is imported when it is asked for. A command module provides
``add_arguments(parser: argparse.ArgumentParser) -> None`` and
``main(args: argparse.Namespace) -> int`` (the exit status). One that passes flags on to SGLang also
has ``parse_args(parser, argv) -> argparse.Namespace``, in place of the parser's own.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sglang.srt.blendserve import __version__, refusals, releases

_PACKAGE = "sglang.srt.blendserve"

_INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: its name, the module that implements it, and its line in ``--help``.

    ``needs_sglang``: it is refused where the installed SGLang is none that we work with.
    """

    name: str
    module: str
    help: str
    needs_sglang: bool = False


COMMANDS = (
    Command(
        "run",
        "run.command",
        "run a batch file (JSONL or Parquet) through SGLang and write the answers",
        needs_sglang=True,
    ),
    Command("submit", "client.submit", "send a file of requests to a server as a batch"),
    Command("status", "client.status", "show the batches of a server"),
    Command("fetch", "client.fetch", "fetch the results of a batch from a server"),
    Command("cancel", "client.cancel", "cancel batches of a server"),
    Command("retry", "client.retry", "answer the failed lines of a batch again, as a new batch"),
    Command(
        "plan", "plan_command.command", "show the annotated prefix tree and what a batch will cost"
    ),
    Command(
        "convert",
        "convert_command.command",
        "convert requests and answers between JSON lines and Parquet",
    ),
    Command(
        "simulate",
        "simulator.simulate",
        "predict the throughput of policies on a model and device, without a GPU",
    ),
    Command(
        "calibrate",
        "simulator.calibrate",
        "measure what this machine's GPU or CPU reaches, for the simulator",
    ),
    Command(
        "recover",
        "server.recover",
        "bring back batches whose database was lost (with their results)",
    ),
    Command(
        "fetch-model", "fetch_model.command", "get the small real model the demo and tests use"
    ),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sglang-blendserve",
        description="Offline batch inference on SGLang, blended so that compute and memory "
        "bandwidth are busy at once.",
        epilog="`sglang-blendserve COMMAND --help` explains a command.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"sglang-blendserve {__version__}, for sglang {' and '.join(releases.SUPPORTED)}; "
        f"found: sglang {releases.found() or 'none'}",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        commands.add_parser(command.name, help=command.help, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand ``argv`` (default: the process arguments) names; return its status.

    Ctrl-C at any moment, while modules are imported too, is a line and the status 130.
    """
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return _INTERRUPTED


def _main(argv: list[str]) -> int:
    chosen = next((c for c in COMMANDS if argv and argv[0] == c.name), None)
    if chosen is None:
        _parser().parse_args(argv)
        return 2
    if chosen.needs_sglang:
        with refusals.as_exit():
            releases.require()
    module = importlib.import_module(f"{_PACKAGE}.{chosen.module}")
    parser = argparse.ArgumentParser(
        prog=f"sglang-blendserve {chosen.name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parse = getattr(module, "parse_args", argparse.ArgumentParser.parse_args)
    return int(module.main(parse(parser, argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
