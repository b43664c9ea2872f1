"""Cancel batches. What they have answered until then can be fetched.

    sglang-blendserve cancel batch_... --server http://127.0.0.1:30000

Exit status: 0 all are being cancelled, 1 the server refused one or is at fault, 2 wrong flags.
"""

from __future__ import annotations

import argparse
import sys

import openai

from sglang.srt.blendserve.client import server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("batch", nargs="+", metavar="BATCH", help="id of a batch")
    server.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Cancel them; return the exit status."""
    return server.in_one_line("cancel", lambda: _cancel(args))


def _cancel(args: argparse.Namespace) -> int:
    client, status = server.connect(args), 0
    for batch in args.batch:
        try:
            print(server.shown(client.batches.cancel(batch)))
        except openai.APIStatusError as error:  # the others may still be cancelled
            print(f"cancel: {batch}: {server.said(error)}", file=sys.stderr)
            status = 1
    return status
