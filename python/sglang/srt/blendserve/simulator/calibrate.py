"""Measure what this machine reaches, for `sglang-blendserve simulate --calibration FILE`.

On a GPU or a CPU: the times of a model's matrix products over the number of tokens, of prefill
attention and of decode attention, in the form of the tables that `simulate` has of A100, H100, H200
and B200; on a GPU also how much compute and memory work slow each other down on two streams. What
the rest of a step takes (norms, sampling, launches, cold caches) comes from the trace of a real run
on this machine with this model:

    sglang-blendserve run ... --blendserve-trace steps.csv
    sglang-blendserve calibrate --steps steps.csv --output here.json

or, where there is none, is given with --step-overhead, in seconds. Run it alone on the machine.

The file names device and source of each number. Simulate with it on the same model and either the
device whose peaks it was measured against, or --device calibrated where that is this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.cost.device_spec import DeviceSpec, known_devices, measure_cpu
from sglang.srt.blendserve.cost.kernel_times import TABLES
from sglang.srt.blendserve.cost.layer_shape import LayerShape
from sglang.srt.blendserve.cost.model_spec import ModelSpec, known_models
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.engine_fit import EngineFit, fit_engine
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.measure_kernels import (
    CPU,
    GPU,
    Rows,
    measure_kernels,
    probes,
)
from sglang.srt.blendserve.simulator.probes import Layer, repeated, seconds_of, side_by_side

_SEQUENCES, _CONTEXT, _CHUNK = 128, 1600, 4096
"""Decodes, their context and a prompt, tokens, whose interference is measured on a GPU."""
_RATES = (
    "gemm_efficiency",
    "attention_efficiency",
    "bandwidth_efficiency",
    "weights_efficiency",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument(
        "--peaks",
        help=f"device whose data sheet the rates are compared with: {', '.join(known_devices())} "
        "(default: the GPU at hand; on a CPU a measured matrix product and memory read)",
    )
    parser.add_argument(
        "--model",
        help=f"whose layer is measured: {', '.join(known_models())} "
        "(default: Llama-3.1-8B on a GPU, SmolLM2-135M on a CPU)",
    )
    rest = parser.add_mutually_exclusive_group()
    rest.add_argument("--step-overhead", type=float, default=0.0, metavar="SECONDS")
    rest.add_argument("--steps", type=Path, metavar="FILE", help="trace of a run of this engine")


def main(args: argparse.Namespace) -> int:
    """Measure and write the file; 0, or 2 for a wrong argument."""
    try:
        document = calibrate(
            args.device, args.peaks, args.model, args.step_overhead, steps=args.steps
        )
    except ValueError as error:
        print(f"sglang-blendserve calibrate: {error}", file=sys.stderr)
        return 2
    args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for name, value in document["calibration"].items():
        if isinstance(value, float):
            print(f"{name:<24}{value:.4g}   {document['sources'][name]}")
    return 0


def calibrate(
    device: str,
    peaks: str | None,
    model: str | None,
    step_overhead: float,
    *,
    steps: Path | None = None,
) -> dict[str, Any]:
    """All measurements and the constants that follow from them. Raises ValueError."""
    import torch
    from tqdm import tqdm

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here")
    if not step_overhead >= 0:
        raise ValueError(f"--step-overhead {step_overhead}: must not be negative")
    name = _device_name(device)
    spec = _peaks(device, peaks, name)
    sizes = CPU if device == "cpu" else GPU
    model = model or _default_model(device)
    shape = ModelSpec.named(model).shape
    if shape is None:
        raise ValueError(f"--model {model}: has experts or latent attention; take a dense model")
    with (
        torch.inference_mode(),
        tqdm(total=probes(shape, sizes), desc="kernels", leave=False, disable=None) as bar,
    ):
        kernels = measure_kernels(shape, device, sizes, bar.update)
        both = None if device == "cpu" else _interference(shape, device)
    constants: dict[str, Any] = _shares(kernels, shape, spec)
    constants |= {"step_overhead": step_overhead, "kernels": kernels}
    if both is not None:
        constants["interference"] = max(both["together_seconds"] / max(both["alone_seconds"]), 1.0)
    layer = f"one layer of {model} in bfloat16 on {name}"
    sources = {
        "gemm_efficiency": f"fastest matrix product, {layer}",
        "attention_efficiency": f"fastest causal attention, {layer}",
        "bandwidth_efficiency": f"fastest decode attention, {layer}",
        "weights_efficiency": f"matrix products of 1 token, {layer}",
        "step_overhead": "given on the command line, not measured",
        "slowness": "not measured",
        "interference": f"matrix products and decode attention at once on two streams, {layer}",
    }
    constants["source"] = f"sglang-blendserve calibrate, {layer}; peaks: {spec.source}"
    fit = None
    if steps is not None:
        fit = _as_in_engine(constants, sources, steps, model, spec)
    return {
        "device": {
            "name": name,
            "peak_flops": spec.peak_flops,
            "bandwidth": spec.bandwidth,
            "memory_bytes": spec.memory_bytes,
            "source": spec.source,
        },
        "calibration": constants,
        "sources": {key: sources[key] for key in constants if key in sources},
        "together": both,
        "engine": None if fit is None else asdict(fit),
        "machine": {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]},
    }


def _as_in_engine(
    constants: dict[str, Any], sources: dict[str, str], steps: Path, model: str, spec: DeviceSpec
) -> EngineFit:
    """Note in ``constants`` how much longer than its kernels the steps of a trace take."""
    kernels = Calibration(**{**constants, "step_overhead": 0.0})
    machine = Machine.build(
        model, spec, "sequential", calibration=kernels, kv_slots=1, rates="tables"
    )
    fit = fit_engine(steps, machine.steps)
    constants |= {"slowness": fit.slowness, "step_overhead": fit.overhead}
    for name in _RATES:
        constants[name] /= fit.slowness
        sources[name] += f"; {fit.slowness:.2f} times slower in the engine"
    for name in ("slowness", "step_overhead"):
        sources[name] = f"{fit.steps} steps of {steps.name}"
    return fit


def _shares(kernels: dict[str, Rows], shape: LayerShape, spec: DeviceSpec) -> dict[str, float]:
    """The best rates of ``kernels`` over the peaks of ``spec``."""
    gemm, prefill, decode = (kernels[table] for table in TABLES)
    width, kept = shape.heads * shape.head_dim, 4 * shape.kv_heads * shape.head_dim
    flops = max(2.0 * row["m"] * row["n"] * row["k"] / row["milliseconds"] for row in gemm)
    attention = max(
        2.0 * width * row["batch"] * row["context"] ** 2 / row["milliseconds"] for row in prefill
    )
    read = max(kept * row["batch"] * row["context"] / row["milliseconds"] for row in decode)
    single = [row for row in gemm if row["m"] == 1]
    loaded = sum(2.0 * row["n"] * row["k"] for row in single)
    return {
        "gemm_efficiency": 1e3 * flops / spec.peak_flops,
        "attention_efficiency": 1e3 * attention / spec.peak_flops,
        "bandwidth_efficiency": 1e3 * read / spec.bandwidth,
        "weights_efficiency": 1e3
        * loaded
        / sum(r["milliseconds"] for r in single)
        / spec.bandwidth,
    }


def _interference(shape: LayerShape, device: str) -> dict[str, Any]:
    """Seconds of a layer's products and of decode attention, alone and at once."""
    one = Layer(shape, device)
    decode, _, _ = one.attention(_SEQUENCES, _CONTEXT, 1)
    compute = one.layer(_CHUNK)
    times = max(round(seconds_of(compute, device) / seconds_of(decode, device)), 1)
    memory = repeated(decode, times)
    alone = [seconds_of(work, device) for work in (compute, memory)]
    together = seconds_of(side_by_side(compute, memory), device)
    return {"alone_seconds": alone, "together_seconds": together}


def _peaks(device: str, peaks: str | None, name: str) -> DeviceSpec:
    if peaks is not None:
        return DeviceSpec.named(peaks)
    if device == "cpu":
        return measure_cpu()
    for known in known_devices():
        if known.split("-")[0].lower() in name.lower():
            return DeviceSpec.named(known)
    raise ValueError(f"{name} is not in the list; name the nearest with --peaks")


def _device_name(device: str) -> str:
    import torch

    if device == "cuda":
        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(models, platform.processor() or 'a CPU')}, {torch.get_num_threads()} threads"


def _default_model(device: str) -> str:
    return "SmolLM2-135M" if device == "cpu" else "Llama-3.1-8B"
