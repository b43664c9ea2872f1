"""Answer *documents x questions* with each policy and with vLLM, in rounds, and compare.

50 documents of about 600 words with 6 questions each (`make_documents.py`), on a real engine with a
KV cache of 12,000 tokens, which holds 15 of the documents. Each peer answers the file once a
round, in another order each round; ratios are taken within a round. Every run is a process of its
own, and its seconds count from the first request to the last answer.

    python benchmark/documents/run.py --rounds 5 --json out.json

Each run is appended to out.jsonl, beside the report, when it is done; a run that is there is not
repeated, so the same command goes on after an interruption. A peer is `fcfs`, `lpm`, `blendserve`,
any other policy of SGLang's, `vllm` (with the precision that this processor is fastest at),
`vllm-defaults`, or one with flags of its own: `NAME=POLICY,FLAG,VALUE,...`, where the policy may be
`vllm`. vLLM has an environment of its own, which `vllm_env.sh` makes.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

import vllm_batch
from document_cells import CellFile, Key
from document_peers import Peer, Task, measure, setting_of
from document_table import report, table
from make_documents import FULL, MODEL, ORDERS, SMALL, write_batch

PEERS = ("fcfs", "lpm", "blendserve", "vllm")
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run all rounds; returns 1 when a run fails, 2 when the arguments do not fit."""
    args = parse()
    # As an exception, it ends the peer that is running, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if args.table:
            print_tables(CellFile(args.table), list(ORDERS))
            return 0
        return run_rounds(args)
    except ValueError as error:
        print(f"documents: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"documents: {error}", file=sys.stderr)
        return 1


def run_rounds(args: argparse.Namespace) -> int:
    """Measure what is missing in the file of cells, and print the tables."""
    from sglang.srt.blendserve.fetch_model.models import model_path

    shape = SMALL if args.small else FULL
    target = args.json.with_suffix(".jsonl") if args.json else args.out / "cells.jsonl"
    if args.fresh:
        target.unlink(missing_ok=True)
    cells = CellFile(target)
    peers = [Peer.of(text) for text in args.peers]
    lacking = vllm_batch.missing(args.vllm)
    if lacking and any(peer.runs == "vllm" for peer in peers):
        print(f"documents: {lacking}; going on without it", file=sys.stderr)
        peers = [peer for peer in peers if peer.runs != "vllm"]
    args.out.mkdir(parents=True, exist_ok=True)
    for order in args.orders:
        batch = args.out / f"{order}.jsonl"
        task = Task(
            batch=batch,
            out=args.out,
            model=args.model_path or model_path("smollm2"),
            model_name=MODEL,
            kv_tokens=args.max_total_tokens or shape.kv_tokens,
            vllm=args.vllm,
            setting={"requests": write_batch(batch, order, shape)},
        )
        print(f"{order}: {task.setting['requests']} requests about {shape.documents} documents, "
              f"KV cache of {task.kv_tokens:,} tokens", flush=True)  # fmt: skip
        for round_ in range(args.rounds):
            turn = round_ % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                if cells.has(Key(round_, order, peer.name), setting_of(peer, task)):
                    continue
                began = time.monotonic()
                cell = measure(peer, task, round_, order)
                cells.append(cell)
                print(
                    f"{order}, round {round_ + 1} of {args.rounds}: {peer.name:12} "
                    f"{cell.seconds:7.1f} s, {cell.tokens_per_second:7.1f} tokens/s, sharing "
                    f"{cell.sharing:.3f} ({time.monotonic() - began:.0f} s in all)",
                    flush=True,
                )
                if args.json:
                    args.json.write_text(json.dumps(report(cells.cells), indent=1) + "\n")
    print_tables(cells, args.orders)
    return 0


def print_tables(cells: CellFile, orders: list[str]) -> None:
    """Print the table of each order that has cells."""
    for order in orders:
        text = table(cells.cells, order)
        if text:
            print(f"\nFile order: {order}\n\n{text}")


def parse() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=["questions"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), metavar="PEER")
    small = "15 documents of about 150 words, KV cache of 1,024 tokens"
    parser.add_argument("--small", action="store_true", help=small)
    parser.add_argument("--max-total-tokens", type=int, help="the KV cache")
    parser.add_argument("--model-path", type=Path, help="default: SmolLM2-135M-Instruct")
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm", metavar="ENVIRONMENT")
    parser.add_argument("--out", type=Path, default=Path("out/documents"), help="answers and logs")
    parser.add_argument("--json", type=Path, help="the report; cells go to the same name as .jsonl")
    parser.add_argument("--fresh", action="store_true", help="forget the cells that are there")
    parser.add_argument("--table", type=Path, metavar="CELLS", help="only print a file's tables")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
