"""Calibration: what an engine reaches of a device's peaks, each constant with its source."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.kernel_times import TABLES, KernelTimes

KernelRows = dict[str, list[dict[str, Any]]]

SCOPES = ("step", "overlap")
"""What interference may slow down: `Calibration.interference_scope`."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Constants of the step time. The defaults are the paper's cost model: peaks, and two
    resources that hinder each other a little."""

    gemm_efficiency: float = 1.0
    """Share of peak FLOP/s that large matrix products reach."""
    attention_efficiency: float = 1.0
    """Share of peak FLOP/s that prefill attention reaches."""
    bandwidth_efficiency: float = 1.0
    """Share of peak bandwidth that decode attention reaches."""
    weights_efficiency: float = 1.0
    """Share of peak bandwidth that loading weights reaches."""
    interference: float = 1.08
    """Time of a step that overlaps compute and memory work, over the longer of the two."""
    interference_scope: str = "step"
    """What `interference` slows down: every ``step`` whole, or the ``overlap`` alone, the part of a
    step in which both resources are busy."""
    step_overhead: float = 0.0
    """Fixed time of a step (launches, sampling), seconds."""
    slowness: float = 1.0
    """Time of kernels in the engine over that of `kernels`."""
    kernels: KernelRows | None = None
    """Measured kernel times by table (``gemm``, ``prefill-attention``, ``decode-attention``), rows
    as those of ``cost/kernel_tables``; with them the four shares above are not used."""
    source: str = (
        "peaks of the data sheet; the paper measured GEMM and attention within 6 % of its "
        "estimates on an A100; interference 1.08 is this project's assumption"
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("source", "kernels"):
                continue
            if field.name == "interference_scope":
                if value not in SCOPES:
                    raise ValueError(
                        f"calibration: interference_scope is {value!r}; choose from "
                        f"{', '.join(SCOPES)}"
                    )
                continue
            least = 0.0 if field.name == "step_overhead" else 1e-6
            if not isinstance(value, int | float) or not value >= least:
                raise ValueError(
                    f"calibration: {field.name} is {value!r}; it must be a positive number"
                )

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file written by ``sglang-blendserve calibrate``. Raises ValueError naming it."""
        values = _read(path)
        known = {field.name for field in fields(cls)}
        constants = values.get("calibration") if isinstance(values, dict) else None
        if not isinstance(constants, dict) or (extra := set(constants) - known):
            what = sorted(extra) if isinstance(constants, dict) else "no object 'calibration'"
            raise ValueError(f"{path}: not a calibration file: {what}; known: {sorted(known)}")
        return cls(**constants)

    def kernel_times(self) -> KernelTimes | None:
        """The kernel times of the file, if it has them. Raises ValueError naming what is wrong."""
        if self.kernels is None:
            return None
        try:
            return KernelTimes(*(self.kernels[table] for table in TABLES))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"calibration: its kernel times lack or spoil {error}") from None

    def as_dict(self) -> dict[str, Any]:
        """The constants by name, as a calibration file holds them."""
        return asdict(self)


def calibrated_device(path: str | Path) -> DeviceSpec:
    """The device that a calibration file was measured on. Raises ValueError naming the file."""
    values = _read(path)
    try:
        numbers = values["device"]
        return DeviceSpec(
            name=str(numbers["name"]),
            peak_flops=float(numbers["peak_flops"]),
            bandwidth=float(numbers["bandwidth"]),
            memory_bytes=float(numbers["memory_bytes"]),
            source=str(numbers["source"]),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: its object 'device' lacks or spoils {error}") from None


def _read(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a calibration file: {error}") from None
