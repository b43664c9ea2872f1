"""The flags of ``sglang-blendserve simulate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sglang.srt.blendserve.cost.device_spec import known_devices
from sglang.srt.blendserve.cost.model_spec import known_models
from sglang.srt.blendserve.policy.pace import PACES
from sglang.srt.blendserve.simulator.fast_run import POLICIES
from sglang.srt.blendserve.simulator.kinds import KINDS, ORDERS
from sglang.srt.blendserve.simulator.length_traces import NAMES
from sglang.srt.blendserve.simulator.machine import ENGINES, RATES
from sglang.srt.blendserve.simulator.options import BLEND_CHUNK
from sglang.srt.blendserve.simulator.peers import CHUNKS, CONSERVATIVENESS

CALIBRATED = "calibrated"
"""Name of the device that a calibration file describes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``sglang-blendserve simulate``."""
    _add_workload(parser)
    _add_machine(parser)
    _add_policies(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    """What is to be answered."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--workload",
        metavar="W",
        help=f"recipe, or trace1 to trace4 of the paper, or {', '.join(KINDS)}, or lengths of "
        f"{', '.join(NAMES)}, several joined by +",
    )
    what.add_argument(
        "--trace", action="append", metavar="FILE[:WEIGHT]", help="trace of lengths; repeatable"
    )
    what.add_argument(
        "--batch",
        metavar="FILE",
        help="batch file in OpenAI's format, or a table of requests; here or at s3:// and so on",
    )
    parser.add_argument(
        "--answers", metavar="FILE", help="output of a run of --batch, of either form as well"
    )
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="model folder whose tokenizer --batch goes through"
    )
    parser.add_argument(
        "--requests", type=int, default=20_000, help="of --workload and --trace (default: 20000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--arrival",
        choices=ORDERS,
        default="shuffled",
        help="order of the file: sorted by source and prefix, interleaved: question by question, "
        "or jobs: a hundred requests of one source after a hundred of another (default: shuffled; "
        "of a --batch: its own)",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """What answers it."""
    parser.add_argument("--model", default="Llama-3.1-8B", help=", ".join(known_models()))
    parser.add_argument(
        "--device",
        default="A100-80G",
        help=f"{', '.join(known_devices())}; or {CALIBRATED}, that of --calibration",
    )
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel ranks (default: 1)")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="lanes",
        help="sequential: stock SGLang. lanes: prompts and decodes at once on parts of the GPU, as "
        "--blendserve-overlap. nanoflow: decode attention beside the rest (A100). ideal: overlap "
        "for nothing, an upper limit. overlap: data-sheet rates, assumed cost (default: lanes)",
    )
    parser.add_argument(
        "--rates",
        choices=RATES,
        help="tables: measured kernel times. peaks: the data sheet's (default: tables where there "
        "are some of the device for the model)",
    )
    parser.add_argument(
        "--engines",
        type=int,
        default=1,
        metavar="N",
        help="so many of these engines: blendserve feeds them from one plan, as `run --engines`, "
        "and peers give them requests in turn, as SGLang's --dp-size (--fast only; default: 1)",
    )
    parser.add_argument("--kv-slots", type=int, help="KV cache, tokens (default: what fits)")
    parser.add_argument("--calibration", type=Path, help="file written by `calibrate`")
    parser.add_argument(
        "--scale",
        type=float,
        help="simulate a 1/SCALE replica: lengths, KV slots and weights divided by it, results "
        "given for the whole (default: 8; of a --batch: 1)",
    )
    parser.add_argument("--fast", action="store_true", help="the step model, without SGLang")


def _add_policies(parser: argparse.ArgumentParser) -> None:
    """What schedules it, and with which settings."""
    parser.add_argument(
        "--policies",
        default="dfs,blendserve",
        help=f"comma-separated: {', '.join(POLICIES)} (default: dfs,blendserve)",
    )
    parser.add_argument(
        "--chunks",
        default=",".join(map(str, CHUNKS)),
        help="chunk sizes tried for each peer, of which the best counts (default: %(default)s)",
    )
    parser.add_argument(
        "--conservativeness",
        default=",".join(map(str, CONSERVATIVENESS)),
        help="values of SGLang's --schedule-conservativeness tried for each peer, as the chunks "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--pace",
        choices=("auto", *PACES),
        default="auto",
        help="of blendserve, as --blendserve-pace of a server (default: marginal)",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=0,
        metavar="N",
        help="most requests of blendserve in the engine at once, waiting ones included, which a "
        "plan over all of them hands over, as `run --max-in-flight` (default: all)",
    )
    parser.add_argument(
        "--pace-chunk",
        type=int,
        default=BLEND_CHUNK,
        metavar="TOKENS",
        help="largest prefill of a step under blendserve and paper (default: %(default)s)",
    )
    parser.add_argument(
        "--separate-prefill",
        action="store_true",
        help="peers compute prompts in steps of their own, as SGLang does without "
        "--enable-mixed-chunk (default: beside the decodes; not with --fast)",
    )
