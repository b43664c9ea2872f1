"""Fetch the results of a batch.

    sglang-blendserve fetch batch_... -o out.jsonl --server http://127.0.0.1:30000
    sglang-blendserve fetch batch_... -o out.parquet --wait

Answers go to the output, failed lines to a file beside it with .errors before the suffix, or both
to one table. Either is written whole or not at all.

Exit status: 0 fetched, 1 there is nothing to fetch or the server or a file is at fault, 2 wrong
flags, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sglang.srt.blendserve.client import results, server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("batch", metavar="BATCH", help="id of the batch")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FILE", help=".jsonl or .parquet"
    )
    results.add_arguments(parser)
    server.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Fetch them; return the exit status."""
    return server.in_one_line("fetch", lambda: _fetch(args))


def _fetch(args: argparse.Namespace) -> int:
    client = server.connect(args)
    results.check(args.output, overwrite=args.overwrite)
    batch = results.wait(client, args.batch) if args.wait else client.batches.retrieve(args.batch)
    return results.fetch(client, batch, args.output, overwrite=args.overwrite)
