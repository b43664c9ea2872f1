"""What is simulated: a model on a device with an engine, as a replica of a given scale."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.measured_cost import at_measured_rates
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.model_times import ModelTimes, measured_times
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.measured_steps import MEASURED_ENGINES, MeasuredSteps
from sglang.srt.blendserve.simulator.step_cost import (
    ENGINES as PEAK_ENGINES,
)
from sglang.srt.blendserve.simulator.step_cost import (
    StepCost,
    StepModel,
    replica_model,
)

MEMORY_SHARE = 0.9
"""Share of the device's memory for weights and KV cache; the rest is for everything else."""

RATES = ("tables", "peaks")
"""Where step times come from: measured kernel times, or the data sheet and shares of it."""

ENGINES = (*MEASURED_ENGINES, *(e for e in PEAK_ENGINES if e not in MEASURED_ENGINES))
"""Engines that can be simulated, with `RATES` of one kind or of both."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica: everything a run needs besides the workload."""

    cost: CostModel
    """What the policy's planner believes: the replica's rates."""
    steps: StepModel
    """What the device does: the time of a step."""
    kv_slots: int
    scale: float
    rates: str = "peaks"
    """One of `RATES`."""
    belief: StepModel | None = None
    """What the policy's pace believes that a step takes; None: what it does take."""

    @classmethod
    def build(
        cls,
        model: str,
        device: str | DeviceSpec,
        engine: str,
        *,
        ranks: int = 1,
        scale: float = 1,
        calibration: Calibration | None = None,
        kv_slots: int | None = None,
        rates: str | None = "peaks",
    ) -> Machine:
        """A machine by names.

        ``ranks``: tensor parallel size. ``kv_slots``: KV cache at scale 1, tokens (default: what
        the weights leave of 90 % of the memory). ``rates``: one of `RATES`; None: tables where
        there are some that hold the model's shapes and the engine is made for them. Raises
        ValueError for an unknown name, where the weights do not fit, or where there is no table.
        """
        if not scale > 0:
            raise ValueError(f"--scale {scale}: must be positive")
        spec = ModelSpec.named(model)
        one = DeviceSpec.named(device) if isinstance(device, str) else device
        hardware = one.tensor_parallel(ranks)
        if kv_slots is None:
            free = hardware.memory_bytes * MEMORY_SHARE - spec.weight_bytes
            kv_slots = int(free / spec.kv_bytes_per_token)
            if kv_slots < 1:
                raise ValueError(
                    f"{spec.name} needs {spec.weight_bytes / 1e9:.0f} GB for its weights and "
                    f"{hardware.name} has {hardware.memory_bytes / 1e9:.0f} GB; raise --tp"
                )
        peaks = CostModel(replica_model(spec, scale), hardware)
        calibration = calibration or Calibration()
        cost: CostModel
        steps: StepModel
        times = _times(spec, hardware, engine, calibration, rates)
        if times is None:
            gemm, bandwidth = calibration.gemm_efficiency, calibration.bandwidth_efficiency
            cost = peaks.at_rates(1 / gemm, 1 / bandwidth)
            steps = StepCost.of(peaks, calibration, engine, scale)
        else:
            whole = at_measured_rates(CostModel(spec, hardware), times)
            cost = CostModel(peaks.model, whole.device)
            steps = MeasuredSteps.of(times, one.name, engine, calibration, scale)
        return cls(
            cost=cost,
            steps=steps,
            kv_slots=max(int(kv_slots / scale), 1),
            scale=scale,
            rates="peaks" if times is None else "tables",
        )

    def real_seconds(self, seconds: float) -> float:
        """Seconds of the whole system for seconds of the replica: its steps are fewer and shorter
        by ``scale`` each."""
        return seconds * self.scale**2


def _times(
    model: ModelSpec,
    device: DeviceSpec,
    engine: str,
    calibration: Calibration,
    rates: str | None,
) -> ModelTimes | None:
    """The kernel times to simulate with; None: data-sheet rates. Raises ValueError."""
    if engine not in ENGINES:
        raise ValueError(f"--engine {engine}: unknown; choose from {', '.join(ENGINES)}")
    only_peaks, only_tables = engine not in MEASURED_ENGINES, engine not in PEAK_ENGINES
    if rates == "peaks" or (rates is None and only_peaks):
        return None
    if only_peaks:
        raise ValueError(f"--engine {engine}: at data-sheet rates only; give --rates peaks")
    try:
        kernels = calibration.kernel_times()
        if kernels is not None:
            return ModelTimes.of(model, device, kernels)
        if calibration == Calibration():
            return measured_times(model, device)
        why = "the calibration has no kernel times"
    except ValueError as error:
        why = str(error)
    if rates is None and not only_tables:
        return None
    raise ValueError(
        f"no measured rates for {model.name} on {device.name}: {why}. Give --rates peaks for "
        f"those of the data sheet, with --engine {' or '.join(PEAK_ENGINES)}"
    )
