"""Measure what this machine reaches, for `sglang-blendserve simulate --calibration FILE`.

On a GPU or a CPU: the rate of matrix products over the number of tokens (and the number of tokens
from which they are no longer bound by loading the weights), the bandwidth of loading weights and of
decode attention, the rate of prefill attention; on a GPU also how much compute and memory work slow
each other down on two streams. It measures one layer of the model; what the rest of a step takes
(norms, sampling, launches, cold caches) comes from the trace of a real run on this machine with
this model:

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
from importlib.resources import files
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.cost.device_spec import DeviceSpec, known_devices, measure_cpu
from sglang.srt.blendserve.cost.model_spec import known_models
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.engine_fit import EngineFit, fit_engine
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.probes import (
    Layer,
    LayerShape,
    repeated,
    seconds_of,
    side_by_side,
)

TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Batch sizes at which matrix products are measured."""

_GPU = {"weights": 2 << 30, "sequences": 128, "context": 1600, "chunk": 4096}
_CPU = {"weights": 256 << 20, "sequences": 32, "context": 512, "chunk": 1024}
"""Sizes of what is measured on a CPU and on a GPU: bytes of weights, and tokens."""
_CPU_MOST_TOKENS = 1024
"""Largest batch measured on a CPU, whose matrix products are bound by compute long before."""
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

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here")
    if not step_overhead >= 0:
        raise ValueError(f"--step-overhead {step_overhead}: must not be negative")
    name = _device_name(device)
    spec = _peaks(device, peaks, name)
    shape = LayerShape.from_config(_config(model or _default_model(device)))
    sizes = _CPU if device == "cpu" else _GPU
    with torch.inference_mode():
        measured = _measure(shape, device, sizes)
    constants: dict[str, float | str] = {
        "gemm_efficiency": measured["gemm_flops"] / spec.peak_flops,
        "attention_efficiency": measured["prefill_attention_flops"] / spec.peak_flops,
        "bandwidth_efficiency": measured["decode_attention_bandwidth"] / spec.bandwidth,
        "weights_efficiency": measured["weight_bandwidth"] / spec.bandwidth,
        "step_overhead": step_overhead,
    }
    if "interference" in measured:
        constants["interference"] = max(measured["interference"], 1.0)
    layer = f"one layer of {model or _default_model(device)} in bfloat16 on {name}"
    sources = {
        "gemm_efficiency": f"best rate over {TOKENS[0]} to {TOKENS[-1]} tokens, {layer}",
        "attention_efficiency": f"causal attention of a chunk of {sizes['chunk']}, {layer}",
        "bandwidth_efficiency": f"decode attention over {sizes['sequences']} x {sizes['context']} "
        f"tokens, {layer}",
        "weights_efficiency": f"matrix products of 1 token, {layer}",
        "step_overhead": "given on the command line, not measured",
        "interference": f"matrix products and decode attention at once on two streams, {layer}",
    }
    constants["source"] = f"sglang-blendserve calibrate, {layer}; peaks: {spec.source}"
    fit = None
    if steps is not None:
        fit = _as_in_engine(constants, sources, steps, model or _default_model(device), spec)
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
        "measurements": measured,
        "engine": None if fit is None else asdict(fit),
        "machine": {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]},
    }


def _as_in_engine(
    constants: dict[str, float | str],
    sources: dict[str, str],
    steps: Path,
    model: str,
    spec: DeviceSpec,
) -> EngineFit:
    """Slow the kernels' rates in ``constants`` down to what the trace ``steps`` shows."""
    kernels = Calibration(**constants)  # type: ignore[arg-type]
    cost = Machine.build(model, spec, "sequential", calibration=kernels, kv_slots=1).steps
    fit = fit_engine(steps, cost)
    for name in _RATES:
        constants[name] = float(constants[name]) / fit.slowness
        sources[name] += f"; {fit.slowness:.2f} times slower in the engine"
    constants["step_overhead"] = fit.overhead
    sources["step_overhead"] = f"{fit.steps} steps of {steps.name}"
    return fit


def _measure(shape: LayerShape, device: str, sizes: dict[str, int]) -> dict[str, Any]:
    from tqdm import tqdm

    element = 2
    one = Layer(shape, device, 1)
    layer = Layer(shape, device, max(sizes["weights"] // (one.parameters * element), 1))
    rows = []
    tokens = [t for t in TOKENS if device != "cpu" or t <= _CPU_MOST_TOKENS]
    for count in tqdm(tokens, desc="matrix products", leave=False, disable=None):
        seconds = seconds_of(layer.gemm(count), device)
        rows.append(
            {
                "tokens": count,
                "seconds": seconds,
                "flops": 2.0 * layer.parameters * count / seconds,
                "weight_bandwidth": layer.parameters * element / seconds,
            }
        )
    best = max(row["flops"] for row in rows)
    decode, read, _ = one.attention(sizes["sequences"], sizes["context"], 1)
    decode_seconds = seconds_of(decode, device)
    prefill, _, flops = one.attention(1, sizes["chunk"], sizes["chunk"])
    result: dict[str, Any] = {
        "gemm": rows,
        "gemm_flops": best,
        "gemm_knee_tokens": next(row["tokens"] for row in rows if row["flops"] >= 0.9 * best),
        "weight_bandwidth": max(row["weight_bandwidth"] for row in rows),
        "decode_attention_bandwidth": read / decode_seconds,
        "prefill_attention_flops": flops / seconds_of(prefill, device),
    }
    if device != "cpu":
        compute = one.gemm(sizes["chunk"])
        times = max(round(seconds_of(compute, device) / decode_seconds), 1)
        memory = repeated(decode, times)
        alone = [seconds_of(work, device) for work in (compute, memory)]
        both = seconds_of(side_by_side(compute, memory), device)
        result |= {"alone_seconds": alone, "together_seconds": both}
        result["interference"] = both / max(alone)
    return result


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


def _config(model: str) -> dict[str, Any]:
    if model not in known_models():
        raise ValueError(f"--model {model!r}: choose from {', '.join(known_models())}")
    path = files("sglang.srt.blendserve.cost").joinpath("models", f"{model}.json")
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return config
