"""DeviceSpec: peak speed and memory of the hardware, from data sheets or measured.

``devices.json`` holds A100-80G, H100 (SXM), H200, B200 and L40S with the source of each number.
They are peaks: what an engine reaches of them is a matter of calibration, not of this file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np

_MATMUL_SIZE = 1024
"""Rows and columns of the matrix product that measures a CPU's speed: large enough to be bound by
compute on any CPU, small enough for some repeats in a quarter of a second."""
_READ_BYTES = 256 << 20
"""Bytes of the read that measures a CPU's memory: more than any processor's caches hold."""
_PROBE_SECONDS = 0.25
"""Time spent repeating one probe; with set-up both together stay under 2 s."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Peak rates of one device, or of several that work as one (tensor parallel)."""

    name: str
    peak_flops: float
    """Dense bf16 FLOP/s (float32 on a CPU); a multiply-add counts 2."""
    bandwidth: float
    """Bytes/s of device memory."""
    memory_bytes: float
    source: str
    """Where the numbers come from."""
    ranks: int = 1
    """Devices that work as this one (tensor parallel)."""
    link_bandwidth: float = 0.0
    """Bytes/s that one device sends to others of its machine while it receives as many; 0 where
    that is not known."""

    def __post_init__(self) -> None:
        for field in ("peak_flops", "bandwidth", "memory_bytes"):
            value = getattr(self, field)
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"device {self.name!r}: {field} must be positive, got {value!r}")

    def tensor_parallel(self, ranks: int) -> DeviceSpec:
        """``ranks`` of these as one device: rates and memory add up (paper section 5.5).

        Communication is not counted in them. Where there are fewer KV heads than ranks, engines
        keep copies of the KV cache, which this does not count either.
        """
        if ranks < 1:
            raise ValueError(f"tensor parallel size must be at least 1, got {ranks}")
        if ranks == 1:
            return self
        return replace(
            self,
            name=f"{ranks}x{self.name}",
            peak_flops=ranks * self.peak_flops,
            bandwidth=ranks * self.bandwidth,
            memory_bytes=ranks * self.memory_bytes,
            ranks=ranks * self.ranks,
        )

    @property
    def base_name(self) -> str:
        """Name of one of the devices that work as this one."""
        return self.name.removeprefix(f"{self.ranks}x") if self.ranks > 1 else self.name

    @classmethod
    def named(cls, name: str) -> DeviceSpec:
        """A device of ``devices.json`` by name (case does not matter).

        Raises ValueError listing the known names.
        """
        devices = _devices()
        for known, numbers in devices.items():
            if known.lower() == name.lower():
                return cls(
                    name=known,
                    peak_flops=float(numbers["peak_flops"]),
                    bandwidth=float(numbers["bandwidth"]),
                    memory_bytes=float(numbers["memory_bytes"]),
                    source=str(numbers["source"]),
                    link_bandwidth=float(numbers.get("link_bandwidth", 0.0)),
                )
        raise ValueError(f"unknown device {name!r}; known: {', '.join(devices)}")


def _devices() -> dict[str, dict[str, float | str]]:
    text = files(__package__).joinpath("devices.json").read_text("utf-8")
    devices: dict[str, dict[str, float | str]] = json.loads(text)
    return devices


def known_devices() -> tuple[str, ...]:
    """Names that `DeviceSpec.named` takes."""
    return tuple(_devices())


def measure_cpu() -> DeviceSpec:
    """This machine's CPU, measured in under 2 s: a float32 matrix product and a memory read.

    Uses as many threads as numpy's BLAS does. The best of several repeats counts, because other
    work on the machine only ever slows a repeat down. The caller keeps the result; each call
    measures anew. ``memory_bytes`` is the machine's physical memory.
    """
    matrix = np.ones((_MATMUL_SIZE, _MATMUL_SIZE), dtype=np.float32)
    product = np.empty_like(matrix)
    vector = np.ones(_READ_BYTES // 4, dtype=np.float32)
    matmul = _best_seconds(lambda: np.matmul(matrix, matrix, out=product))
    # A dot product is a read through BLAS, with its threads; both operands come from memory.
    half = vector.size // 2
    read = _best_seconds(lambda: np.dot(vector[:half], vector[half:]))
    return DeviceSpec(
        name="cpu",
        peak_flops=2.0 * _MATMUL_SIZE**3 / matmul,
        bandwidth=vector.nbytes / read,
        memory_bytes=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        source=f"measured: float32 matmul of {_MATMUL_SIZE}, read of {_READ_BYTES >> 20} MiB",
    )


def _best_seconds(work: Callable[[], object]) -> float:
    """Shortest of repeated runs of ``work``, after one that is not timed."""
    work()
    best = float("inf")
    stop = time.perf_counter() + _PROBE_SECONDS
    while True:
        start = time.perf_counter()
        work()
        end = time.perf_counter()
        best = min(best, end - start)
        if end >= stop:
            return best
