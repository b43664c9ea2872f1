"""Show the batches of a server, or one of them with its errors by kind.

    sglang-blendserve status --server http://127.0.0.1:30000
    sglang-blendserve status batch_... --json

Exit status: 0 shown, 1 the server is at fault or knows no such batch, 2 wrong flags.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from typing import Any

import openai
from openai.types import Batch

from sglang.srt.blendserve.client import server

_FIRST = 5
"""Failed lines that are named of a kind."""


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
    if args.batch is not None and not args.json:
        for kind in _errors(client, found[0]):
            print(_shown(kind))
    return 0


def _errors(client: openai.OpenAI, batch: Batch) -> list[dict[str, Any]]:
    """Return what has failed, by kind; nothing where the server cannot tell."""
    if batch.request_counts is None or not batch.request_counts.failed:
        return []
    try:
        answer = client.get(f"/batches/{batch.id}/errors", cast_to=object)
    except openai.APIStatusError:  # another server's, which has no such route
        return []
    kinds = answer.get("data") if isinstance(answer, dict) else None
    return [kind for kind in kinds or () if isinstance(kind, dict)]


def _shown(kind: dict[str, Any]) -> str:
    """Return a line about failed lines of one kind; what lines hold moves no cursor."""
    status = kind.get("status_code") or "not sent"
    first = (kind.get("custom_ids") or kind.get("lines") or [])[:_FIRST]
    which = ", ".join(map(str, first))
    what = [str(kind[name]) for name in ("code", "message") if kind.get(name)]
    text = f"  {kind.get('count')} x {status}: {' '.join(what)}" + (f" ({which})" if which else "")
    return "".join(each if each.isprintable() else "?" for each in text)
