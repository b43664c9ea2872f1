"""Send a file of requests to a server as a batch.

    sglang-blendserve submit -i in.jsonl --server http://127.0.0.1:30000
    sglang-blendserve submit -i in.jsonl --wait -o out.jsonl

Without --wait the batch's id is printed and the command ends; `status`, `fetch`, `cancel` and
`retry` take it. With --wait a bar follows the batch, and its results are fetched. Ctrl-C ends the
waiting and not the batch.

The input may be JSON lines, packed by gzip or not, or Parquet, here or in an object store
(s3://, gs://, hf://) or on the web (https://); the output JSON lines, beside which
failed lines go to a file of their own, or Parquet with both.

Exit status: 0 sent (with --wait: ended, results fetched), 1 the server or a file is at fault, 2
wrong flags, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sglang.srt.blendserve.client import batch_files, results, server
from sglang.srt.blendserve.tables import remote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("-i", "--input", required=True, metavar="FILE", help="the requests")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="for the answers, with --wait (default: the input's name with .out before its suffix)",
    )
    results.add_arguments(parser)
    parser.add_argument(
        "--endpoint", metavar="URL", help="of all lines (default: what the first line names)"
    )
    parser.add_argument(
        "--window", default="24h", metavar="TIME", help="completion window (default: 24h)"
    )
    parser.add_argument(
        "--metadata",
        action="append",
        default=[],
        type=_pair,
        metavar="KEY=VALUE",
        help="kept with the batch; may be given several times",
    )
    server.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Send the file; return the exit status."""
    return server.in_one_line("submit", lambda: _submit(args))


def _submit(args: argparse.Namespace) -> int:
    client = server.connect(args)
    given = remote.name_of(args.input) if remote.is_remote(args.input) else args.input
    path = Path(given.removesuffix(".gz"))
    suffix = ".parquet" if path.is_dir() else path.suffix
    output = args.output or path.with_name(f"{path.stem}.out{suffix}")
    if args.wait:
        results.check(output, overwrite=args.overwrite, source=args.input)
    with batch_files.opened(args.input) as file:
        endpoint = args.endpoint or batch_files.endpoint_of(file, args.input)
        sent = client.files.create(file=(f"{path.stem}.jsonl", file), purpose="batch")
    batch = results.create(
        client,
        input_file_id=sent.id,
        endpoint=endpoint,
        completion_window=args.window,
        metadata=dict(args.metadata),
    )
    with results.told_how_to_go_on(batch.id, output, args.server):
        print(batch.id, flush=True)
        if ((batch.model_extra or {}).get("forecast") or {}).get("in_time") is False:
            print(f"It may miss its window: {server.shown(batch)}", file=sys.stderr)
        if not args.wait:
            return 0
        ended = results.wait(client, batch.id)
        return results.fetch(client, ended, output, overwrite=args.overwrite)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not of the form KEY=VALUE")
    return key, value
