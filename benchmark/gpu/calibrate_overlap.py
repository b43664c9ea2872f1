"""What a GPU reaches of its peaks, and what prefill and decode cost each other on it.

    python benchmark/gpu/calibrate_overlap.py ORDER.json OUT.json

ORDER: ``device`` (``cuda`` or ``cpu``), ``spec`` (name of the device's peaks), ``small``. OUT is a
calibration file as ``sglang-blendserve simulate --calibration`` reads it, with the measurements
behind it: GEMM rate over tokens, bandwidth of weight loading and of decode attention, prefill
attention, and both kinds of work at once over divisions of the SMs.

Interference is the time in which a piece of compute and a piece of memory work are both done, over
the time that either takes alone on the whole device; the pieces are sized to take the same time,
where it is largest. 1.0 would be perfect overlap, 2.0 none at all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sglang.srt.blendserve.cost.device_spec import DeviceSpec
    from sglang.srt.blendserve.runtime.overlap.lanes import Lanes

Work = Callable[[], object]

_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer of the model, and how much of it is run."""

    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    tokens: tuple[int, ...] = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    chunk: int = 2048
    decodes: int = 128
    context: int = 1600
    piece_seconds: float = 0.02
    """Length of a piece of work in the interference measurement."""


SMALL = Shape(64, 128, 4, 2, 16, (16, 64), 64, 4, 32, 0.001)


class Layer:
    """Matrix products and attention of one layer, with random numbers."""

    def __init__(self, shape: Shape, device: str) -> None:
        import torch

        self.shape, self.device = shape, device
        self.dtype = torch.bfloat16 if device != "cpu" else torch.float32
        qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        sizes = (
            (shape.hidden, qkv),
            (shape.heads * shape.head_dim, shape.hidden),
            (shape.hidden, 2 * shape.intermediate),
            (shape.intermediate, shape.hidden),
        )
        self.weights = [self._random(*size) for size in sizes]
        self.parameters = sum(w.numel() for w in self.weights)
        cache = (shape.decodes * shape.context, 1, shape.kv_heads, shape.head_dim)
        self.keys, self.values = self._random(*cache), self._random(*cache)

    def _random(self, *size: int) -> torch.Tensor:
        import torch

        return torch.randn(*size, device=self.device, dtype=self.dtype)

    def gemm(self, tokens: int) -> Work:
        """All matrix products of the layer for ``tokens`` tokens."""
        inputs = [self._random(tokens, weight.shape[0]) for weight in self.weights]

        def work() -> None:
            for one, weight in zip(inputs, self.weights, strict=True):
                one @ weight

        return work

    def decode_attention(self) -> tuple[Work, int]:
        """Decode attention over the whole cache, and the bytes it reads."""
        import torch

        shape = self.shape
        read = 2 * self.keys.numel() * self.keys.element_size()
        if self.device == "cpu":
            flat = self.keys.flatten()
            return (lambda: (flat.sum(), self.values.flatten().sum())), read
        from sgl_kernel.flash_attn import flash_attn_with_kvcache

        q = self._random(shape.decodes, shape.heads, shape.head_dim)
        integers: dict[str, Any] = {"dtype": torch.int32, "device": self.device}
        table = torch.arange(shape.decodes * shape.context, **integers)
        lengths = torch.full((shape.decodes,), shape.context, **integers)
        arguments = {
            "q": q,
            "k_cache": self.keys,
            "v_cache": self.values,
            "page_table": table.view(shape.decodes, shape.context),
            "cache_seqlens": lengths,
            "cu_seqlens_q": torch.arange(shape.decodes + 1, **integers),
            "cu_seqlens_k_new": torch.arange(shape.decodes + 1, **integers) * shape.context,
            "max_seqlen_q": 1,
            "causal": True,
        }
        return (lambda: flash_attn_with_kvcache(**arguments)), read

    def prefill_attention(self) -> tuple[Work, float]:
        """Causal attention of one chunk, and its floating-point operations."""
        import torch

        shape = self.shape
        q, k, v = (self._random(1, shape.heads, shape.chunk, shape.head_dim) for _ in range(3))
        flops = 4.0 * shape.heads * shape.head_dim * shape.chunk**2 / 2
        attend = torch.nn.functional.scaled_dot_product_attention
        return (lambda: attend(q, k, v, is_causal=True)), flops


def seconds_of(work: Work, device: str) -> float:
    """Median time of repeated runs, after one that is not timed."""
    import torch

    work()
    times = []
    for _ in range(_REPEATS):
        if device == "cpu":
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return median(times)


def repeated(work: Work, times: int) -> Work:
    """``work`` several times over."""

    def all_of_it() -> None:
        for _ in range(times):
            work()

    return all_of_it


def together(lanes: Lanes, group: int, prefill: Work | None, decode: Work | None) -> float:
    """Seconds until both are done, launched at once on the two lanes of ``group``."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        launched = []
        if prefill is not None:
            launched.append(lanes.prefill.launch(group, prefill)[1])
        if decode is not None:
            launched.append(lanes.decode.launch(group, decode)[1])
        while launched:
            launched = [work for work in launched if not work.done()]
        times.append(time.perf_counter() - start)
    return median(times[1:])


def interference(layer: Layer, spec: DeviceSpec, split: str) -> list[dict[str, float]]:
    """One row for each division of the SMs."""
    import torch

    from sglang.srt.blendserve.runtime.overlap.lanes import make_lanes

    device = layer.device
    compute, (memory, _) = layer.gemm(layer.shape.chunk), layer.decode_attention()
    piece = layer.shape.piece_seconds
    prefill, decode = (
        repeated(work, max(round(piece / seconds_of(work, device)), 1))
        for work in (compute, memory)
    )
    alone = seconds_of(prefill, device), seconds_of(decode, device)
    gpu = 0 if device == "cpu" else torch.cuda.current_device()
    lanes = make_lanes(device, gpu, split)
    rows = []
    for group in range(lanes.first, lanes.first + lanes.choices):
        prefill_sms, decode_sms = lanes.counts[group]
        both = together(lanes, group, prefill, decode)
        rows.append(
            {
                "prefill_sms": prefill_sms,
                "decode_sms": decode_sms,
                "compute_alone_whole": alone[0],
                "memory_alone_whole": alone[1],
                "compute_alone": together(lanes, group, prefill, None),
                "memory_alone": together(lanes, group, None, decode),
                "both": both,
                "interference": both / max(alone),
                "gain_over_sequence": sum(alone) / both,
            }
        )
    return rows


def calibrate(device: str, spec: DeviceSpec, shape: Shape) -> dict[str, Any]:
    """All measurements and the constants that follow from them."""
    layer = Layer(shape, device)
    element = layer.weights[0].element_size()
    gemm = []
    for tokens in shape.tokens:
        seconds = seconds_of(layer.gemm(tokens), device)
        gemm.append(
            {
                "tokens": tokens,
                "seconds": seconds,
                "flops": 2.0 * layer.parameters * tokens / seconds,
                "weight_bandwidth": layer.parameters * element / seconds,
            }
        )
    best = max(row["flops"] for row in gemm)
    knee = next(row["tokens"] for row in gemm if row["flops"] >= 0.9 * best)
    decode, read = layer.decode_attention()
    decode_bandwidth = read / seconds_of(decode, device)
    prefill, flops = layer.prefill_attention()
    prefill_flops = flops / seconds_of(prefill, device)
    overlap = [row for split in ("auto", "shared") for row in interference(layer, spec, split)]
    least = min(row["interference"] for row in overlap)
    constants = {
        "gemm_efficiency": best / spec.peak_flops,
        "attention_efficiency": prefill_flops / spec.peak_flops,
        "bandwidth_efficiency": decode_bandwidth / spec.bandwidth,
        "interference": least,
        "step_overhead": 0.0,
        "source": f"benchmark/gpu/calibrate_overlap.py on {_device_name(device)}, of the peaks of "
        f"{spec.name}; one layer of {shape.hidden} x {shape.intermediate}; step overhead not "
        "measured; prefill attention is torch's",
    }
    return {
        "calibration": constants,
        "measurements": {
            "gemm": gemm,
            "gemm_knee_tokens": knee,
            "decode_attention_bandwidth": decode_bandwidth,
            "prefill_attention_flops": prefill_flops,
            "overlap": overlap,
        },
    }


def _device_name(device: str) -> str:
    import torch

    return "a CPU" if device == "cpu" else str(torch.cuda.get_device_name())


def main(order: dict[str, Any], target: Path) -> int:
    """See the module's docstring."""
    from sglang.srt.blendserve.cost.device_spec import DeviceSpec, measure_cpu

    cpu = order["device"] == "cpu"
    spec = measure_cpu() if cpu else DeviceSpec.named(order["spec"])
    shape = SMALL if order["small"] else Shape()
    target.write_text(json.dumps(calibrate(order["device"], spec, shape), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
