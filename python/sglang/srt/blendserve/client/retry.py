"""Answer the failed lines of a batch again, as a new batch.

    sglang-blendserve retry batch_... --server http://127.0.0.1:30000
    sglang-blendserve retry batch_... --wait -o again.jsonl

The lines that the batch's error file names are taken from its input, both from the server, and sent
as a new batch with the same endpoint, whose id is printed.

Exit status: 0 sent (with --wait: ended, results fetched), 1 no line has failed, or the server or a
file is at fault, 2 wrong flags, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from sglang.srt.blendserve.client import batch_files, results, server
from sglang.srt.blendserve.client.server import ENDED, ClientError, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("batch", metavar="BATCH", help="id of the batch, which has ended")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="for the answers; needed with --wait"
    )
    results.add_arguments(parser)
    server.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Send them; return the exit status."""
    return server.in_one_line("retry", lambda: _retry(args))


def _retry(args: argparse.Namespace) -> int:
    client = server.connect(args)
    if args.wait:
        if args.output is None:
            raise ClientError("--wait needs -o FILE, for the answers")
        results.check(args.output, overwrite=args.overwrite)
    before = client.batches.retrieve(args.batch)
    if before.status not in ENDED:
        raise ClientError(f"{shown(before)}: it has not ended")
    if before.error_file_id is None:
        raise ClientError(f"{shown(before)}: no line of it has failed")
    with tempfile.TemporaryDirectory() as folder:
        requests, errors = Path(folder) / "requests", Path(folder) / "errors"
        results.download(client, before.input_file_id, requests)
        results.download(client, before.error_file_id, errors)
        with (
            requests.open("rb") as lines,
            errors.open("rb") as failed,
            batch_files.failed_lines(lines, failed) as file,
        ):
            sent = client.files.create(file=(f"retry-{before.id}.jsonl", file), purpose="batch")
    batch = results.create(
        client,
        input_file_id=sent.id,
        endpoint=before.endpoint,
        completion_window=before.completion_window,
        metadata={**(before.metadata or {}), "retry_of": before.id},
    )
    with results.told_how_to_go_on(batch.id, args.output, args.server):
        print(batch.id, flush=True)
        if not args.wait:
            return 0
        ended = results.wait(client, batch.id)
        return results.fetch(client, ended, args.output, overwrite=args.overwrite)
