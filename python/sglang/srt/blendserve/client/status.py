"""Show the batches of a server, or one of them.

    sglang-blendserve status --server http://127.0.0.1:30000
    sglang-blendserve status batch_... --json

Exit status: 0 shown, 1 the server is at fault or knows no such batch, 2 wrong flags.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice

from sglang.srt.blendserve.client import server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("batch", nargs="?", metavar="BATCH", help="id (default: the newest ones)")
    parser.add_argument("--limit", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the server's objects, one a line")
    server.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Show them; return the exit status."""
    return server.in_one_line("status", lambda: _show(args))


def _show(args: argparse.Namespace) -> int:
    client = server.connect(args)
    if args.batch is not None:
        found = [client.batches.retrieve(args.batch)]
    else:
        found = [*islice(client.batches.list(limit=min(max(args.limit, 1), 100)), args.limit)]
    for batch in found:
        print(json.dumps(batch.to_dict()) if args.json else server.shown(batch))
    return 0
