"""What is simulated: a model on a device with an engine, as a replica of a given scale."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.step_cost import StepCost, replica_model

MEMORY_SHARE = 0.9
"""Share of the device's memory for weights and KV cache; the rest is for everything else."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica: everything a run needs besides the workload."""

    cost: CostModel
    """What the policy's planner believes: the replica's rates, as the runtime finds them out by
    measuring its steps (`runtime.record.step_feedback`), which is not simulated."""
    steps: StepCost
    """What the device does: the calibrated time of a step."""
    kv_slots: int
    scale: float

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
    ) -> Machine:
        """A machine by names.

        ``ranks``: tensor parallel size. ``kv_slots``: KV cache at scale 1, tokens (default: what
        the weights leave of 90 % of the memory). Raises ValueError for an unknown name or where
        the weights do not fit.
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
        gemm, bandwidth = calibration.gemm_efficiency, calibration.bandwidth_efficiency
        return cls(
            cost=peaks.at_rates(1 / gemm, 1 / bandwidth),
            steps=StepCost.of(peaks, calibration, engine, scale),
            kv_slots=max(int(kv_slots / scale), 1),
            scale=scale,
        )

    def real_seconds(self, seconds: float) -> float:
        """Seconds of the whole system for seconds of the replica: its steps are fewer and shorter
        by ``scale`` each."""
        return seconds * self.scale**2
