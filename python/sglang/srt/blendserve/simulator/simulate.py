"""Predict the throughput of scheduling policies on a model and a device, without a GPU.

A workload is a mix by recipe (--workload trace1, or --workload
density=1.4,sharing=0.35,compute=burstgpt,memory=video,prefix=mmlu), one of documents, prefixes,
agents and reasoning (--workload documents,tokens=500-4000,uses=3-20), or trace files (--trace
lengths.csv.gz:0.7, repeatable; columns input_tokens and output_tokens, optionally prefix_id and
prefix_tokens), or a batch that has been answered (--batch in.jsonl --answers out.jsonl --tokenizer
MODEL), with its real prompts. Output lengths are known to the device alone; a policy sees prompts
and caps.

By default SGLang's own scheduler runs against a device that only keeps time. With --fast the same
policies run on a step model without SGLang, hundreds of thousands of requests in a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.cost.device_spec import DeviceSpec, known_devices
from sglang.srt.blendserve.cost.model_spec import known_models
from sglang.srt.blendserve.policy.pace import PACES
from sglang.srt.blendserve.simulator.calibration import Calibration, calibrated_device
from sglang.srt.blendserve.simulator.fast_run import OURS, POLICIES, FastRun
from sglang.srt.blendserve.simulator.full_run import FullRun
from sglang.srt.blendserve.simulator.kinds import KINDS, ORDERS, make_workload, ordered
from sglang.srt.blendserve.simulator.length_traces import WorkloadError
from sglang.srt.blendserve.simulator.machine import ENGINES, RATES, Machine
from sglang.srt.blendserve.simulator.options import BLEND_CHUNK, BlendOptions
from sglang.srt.blendserve.simulator.peer_flags import PeerFlags
from sglang.srt.blendserve.simulator.peers import CHUNKS, CONSERVATIVENESS
from sglang.srt.blendserve.simulator.recipe import from_files, reference_cost
from sglang.srt.blendserve.simulator.result import Result
from sglang.srt.blendserve.simulator.workload import Workload

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
        help=f"recipe, or trace1 to trace4 of the paper, or {', '.join(KINDS)}",
    )
    what.add_argument(
        "--trace", action="append", metavar="FILE[:WEIGHT]", help="trace of lengths; repeatable"
    )
    what.add_argument("--batch", type=Path, metavar="FILE", help="batch file in OpenAI's format")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="output of a run of --batch")
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="model folder whose tokenizer --batch goes through"
    )
    parser.add_argument(
        "--requests", type=int, default=20_000, help="of --workload and --trace (default: 20000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default="shuffled",
        help="of the file: sorted by source and prefix, or interleaved, as question by question "
        "(default: shuffled; of a --batch: its own)",
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
        help="of blendserve, as --blendserve-pace of a server (default: balance on an engine that "
        "overlaps, spread on one that does not)",
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


def main(args: argparse.Namespace) -> int:
    """Run the policies and print a table. Returns 0, 1 if SGLang failed, 2 for a wrong argument."""
    try:
        return _simulate(args)
    except (WorkloadError, ValueError) as error:
        print(f"sglang-blendserve simulate: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"sglang-blendserve simulate: {error}", file=sys.stderr)
        return 1


def _simulate(args: argparse.Namespace) -> int:
    if args.requests < 1:
        raise ValueError(f"--requests {args.requests}: must be at least 1")
    policies = [name for name in args.policies.split(",") if name]
    if unknown := [name for name in policies if name not in POLICIES]:
        raise ValueError(f"--policies: unknown {unknown[0]!r}; known: {', '.join(POLICIES)}")
    flags = PeerFlags.parse(args.chunks, args.conservativeness)
    device = _device(args)
    calibration = Calibration() if args.calibration is None else Calibration.load(args.calibration)
    if args.scale is None:
        args.scale = 1 if args.batch is not None else 8
    machine = Machine.build(
        args.model,
        device,
        args.engine,
        ranks=args.tp,
        scale=args.scale,
        calibration=calibration,
        kv_slots=args.kv_slots,
        rates=args.rates,
    )
    workload = _workload(args)
    described = describe(workload)
    print(
        f"{workload.size} requests, {workload.tokens} tokens; density "
        f"{described['density']:.3f} (Llama-3.1-8B, A100), sharing {described['sharing']:.3f}"
    )
    print(f"engine {args.engine}, step times {rates_source(args, machine)}")
    options = BlendOptions(pace=args.pace, chunk=args.pace_chunk)
    runner: FastRun | FullRun
    if args.fast:
        if args.separate_prefill:
            raise ValueError("--separate-prefill: the step model always mixes; leave out --fast")
        runner = FastRun(workload, machine, options)
    else:
        runner = FullRun(workload, machine, args.model, device, args.tp, calibration, options)
        runner.mixed = not args.separate_prefill
    results = [_run(runner, policy, flags, workload.size) for policy in policies]
    print_table(results)
    if args.json is not None:
        document = {
            "workload": described,
            "machine": describe_machine(args, machine),
            "results": [result.as_dict() for result in results],
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _workload(args: argparse.Namespace) -> Workload:
    if args.workload is not None:
        return make_workload(args.workload, args.requests, args.seed, args.order)
    if args.trace is not None:
        return ordered(from_files(args.trace, args.requests, args.seed), args.order)
    for flag in ("answers", "tokenizer"):
        if getattr(args, flag) is None:
            raise ValueError(f"--batch {args.batch} needs --{flag} too")
    from sglang.srt.blendserve.simulator.batch_replay import BatchReplay

    return BatchReplay.read(args.batch, args.answers, args.tokenizer)


def _device(args: argparse.Namespace) -> DeviceSpec:
    if args.device != CALIBRATED:
        return DeviceSpec.named(args.device)
    if args.calibration is None:
        raise ValueError(f"--device {CALIBRATED} takes the device of a --calibration file")
    return calibrated_device(args.calibration)


def _run(runner: FastRun | FullRun, policy: str, flags: PeerFlags, requests: int) -> Result:
    from tqdm import tqdm

    rounds = 1 if policy in OURS else len(flags.chunks) * len(flags.conservativeness)
    with tqdm(total=rounds * requests, desc=policy, unit="req", leave=False, disable=None) as bar:
        return runner.run(
            policy,
            chunks=flags.chunks,
            conservativeness=flags.conservativeness,
            progress=bar.update,
        )


def describe(workload: Workload) -> dict[str, Any]:
    """Size, tokens, density and sharing of a workload as it was drawn, for JSON."""
    return {
        "name": workload.name,
        "requests": workload.size,
        "seed": workload.seed,
        "input_tokens": int(workload.prompt_tokens.sum()),
        "output_tokens": int(workload.output_tokens.sum()),
        "density": workload.density(reference_cost()),
        "sharing": workload.sharing,
        "sources": {
            name: int((workload.source == place).sum())
            for place, name in enumerate(workload.sources)
        },
    }


def describe_machine(args: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """Model, device, engine and scale of a simulation, for JSON."""
    return {
        "model": args.model,
        "device": args.device,
        "tp": args.tp,
        "engine": args.engine,
        "rates": machine.rates,
        "rates_source": rates_source(args, machine),
        "scale": args.scale,
        "kv_slots": machine.kv_slots,
        "simulation": "fast step model" if args.fast else "SGLang scheduler",
    }


def rates_source(args: argparse.Namespace, machine: Machine) -> str:
    """Where the step times of a simulation come from, in a few words."""
    if args.calibration is not None:
        return f"measured: {args.calibration.name}"
    if machine.rates == "tables":
        return f"measured: kernel times of SGLang on {args.device}, cost/kernel_tables"
    return f"data sheet: {DeviceSpec.named(args.device).source}"


def print_table(results: list[Result]) -> None:
    """Print a table of results with one line for each policy."""
    print(
        f"{'policy':<12}{'chunk':>6}{'cons.':>6}{'tokens/s':>10}{'seconds':>10}{'optimum':>9}"
        f"{'sharing':>9}{'compute':>9}{'memory':>8}{'KV':>6}{'retr.':>7}"
    )
    for r in results:
        print(
            f"{r.policy:<12}{r.chunk:>6}{r.conservativeness or '-':>6}"
            f"{r.tokens_per_second:>10.0f}{r.seconds:>10.0f}"
            f"{r.share_of_optimum:>9.3f}{r.prefix_sharing:>9.3f}{r.compute_busy:>9.2f}"
            f"{r.memory_busy:>8.2f}{r.kv_occupancy:>6.2f}{r.retractions:>7}"
        )
