"""What it costs to run compute-bound and memory-bound kernels at once: published measurements.

Two ways of doing it. NanoFlow (Zhu et al., OSDI '25) runs matrix products and decode attention of
one step side by side; how much of one rate is given up for the other was measured on an A100.
Bullet (ASPLOS '26, arXiv 2504.19516) and MuxWise (arXiv 2504.14489) divide the SMs of a GPU between
a prefill and a decode lane, as this project does (`runtime.overlap`); they measured on an A100 and,
MuxWise, on Hopper. None of it was measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exchange:
    """Time of compute and memory work that run side by side: longer + extra * shorter."""

    compute_longer: float
    """``extra`` where the compute work alone takes longer."""
    memory_longer: float
    """``extra`` where the memory work alone takes longer."""

    def together(self, compute: float, memory: float) -> float:
        """Return the seconds for ``compute`` and ``memory`` seconds of work at once."""
        if compute >= memory:
            return compute + self.compute_longer * memory
        return memory + self.memory_longer * compute


@dataclass(frozen=True, slots=True)
class LaneCost:
    """What two lanes on parts of the SMs cost each other."""

    sms: int
    """SMs of the device."""
    knee: int
    """SMs from which on decode attention has all of the memory's bandwidth."""
    kept: float
    """Share of its part of the SMs that prefill makes use of beside a decode lane."""
    slowed: float
    """Time of the decode lane beside a prefill, over its time on as many SMs alone."""

    def divisions(self) -> list[tuple[float, float]]:
        """Return the shares of the SMs (prefill, decode) of each division: decode gets 16 SMs,
        32 and so on, up to three quarters."""
        most = self.sms * 3 // 4
        decodes = range(_GRID, most + 1, _GRID)
        return [(1 - decode / self.sms, decode / self.sms) for decode in decodes]

    def exchange(self) -> Exchange:
        """Return what the lanes cost where decode is nothing but attention, at the knee."""
        prefill = (1 - self.knee / self.sms) * self.kept
        return Exchange(self.slowed * (1 - prefill), (1 - 1 / self.slowed) / prefill)


_GRID = 16
"""SMs by which the divisions of a GPU differ."""

NANOFLOW = {"A100-80G": Exchange(0.50, 0.33)}
"""NanoFlow's exchange of GEMM and GEMV rates: 0.6 of the one leaves 0.8 of the other."""

_HOPPER = LaneCost(sms=132, knee=48, kept=0.92, slowed=1.20)

LANES = {
    "A100-80G": LaneCost(sms=108, knee=30, kept=0.92, slowed=1.15),
    "H100": _HOPPER,
    "H200": _HOPPER,
}
"""Bullet and MuxWise. Bandwidth is flat from 30 of 108 SMs on (A100), near its plateau at 48 of 132
(Hopper, a micro-benchmark of green contexts). Products lose less than 8 per cent on 60 per cent of
the SMs or more. Decode was slowed by 0 to 20 per cent (A100) and 0 to 30 (Hopper): the upper middle
is taken, with which `LaneCost.exchange` lies in the published ranges on both."""
LANE_RANGES = {
    "A100-80G": ((0.37, 0.42), (0.15, 0.30)),
    "H100": ((0.49, 0.59), (0.26, 0.51)),
    "H200": ((0.49, 0.59), (0.26, 0.51)),
}
"""Published ranges of the two fields of `Exchange`."""
