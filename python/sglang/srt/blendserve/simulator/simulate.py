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
from typing import Any

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.simulator.calibration import Calibration, calibrated_device
from sglang.srt.blendserve.simulator.fast_run import OURS, POLICIES, FastRun
from sglang.srt.blendserve.simulator.full_run import FullRun
from sglang.srt.blendserve.simulator.kinds import make_workload, ordered
from sglang.srt.blendserve.simulator.length_traces import WorkloadError
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.many_engines import Fleet
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.peer_flags import PeerFlags
from sglang.srt.blendserve.simulator.recipe import from_files, reference_cost
from sglang.srt.blendserve.simulator.result import Result
from sglang.srt.blendserve.simulator.simulate_flags import CALIBRATED, add_arguments
from sglang.srt.blendserve.simulator.workload import Workload

__all__ = ["add_arguments", "main"]


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
    if args.window < 0:
        raise ValueError(f"--window {args.window}: must be at least 1, or 0 for all")
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
    here = CostModel(ModelSpec.named(args.model), machine.cost.device)
    described["density_here"] = workload.density(here)
    print(
        f"{workload.size} requests, {workload.tokens} tokens; sharing {described['sharing']:.3f}; "
        f"density {described['density']:.3f} by the data sheet (Llama-3.1-8B, A100), "
        f"{described['density_here']:.3f} by the rates here"
    )
    print(f"engine {args.engine}, step times {rates_source(args, machine)}")
    options = BlendOptions(pace=args.pace, chunk=args.pace_chunk, window=args.window)
    runner: FastRun | FullRun
    if args.fast:
        if args.separate_prefill:
            raise ValueError("--separate-prefill: the step model always mixes; leave out --fast")
        runner = FastRun(workload, machine, options, fleet=Fleet(args.engines))
    elif args.engines != 1:
        raise ValueError("--engines: several are simulated on the step model alone; add --fast")
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
        return make_workload(args.workload, args.requests, args.seed, args.arrival)
    if args.trace is not None:
        return ordered(from_files(args.trace, args.requests, args.seed), args.arrival)
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
        "engines": args.engines,
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
