"""The planner's cost model at the rates that were measured, where there are any.

By its data sheet an A100 has one ratio of compute to bandwidth, by its kernels another one. What a
planner calls compute-bound must be what the device is kept busy with.
"""

from __future__ import annotations

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.model_times import ModelTimes, measured_times


def measured_cost(model: ModelSpec, device: DeviceSpec) -> CostModel:
    """Return the cost model of ``model`` on ``device``: at measured rates where its table holds the
    model's shapes, else at those of the data sheet."""
    peaks = CostModel(model, device)
    try:
        return at_measured_rates(peaks, measured_times(model, device))
    except ValueError:
        return peaks


def at_measured_rates(peaks: CostModel, times: ModelTimes) -> CostModel:
    """Return ``peaks`` at the rates that ``times`` has in steps of usual size."""
    typical = times.typical()
    compute = typical.token / float(peaks.prompt_token_seconds())
    memory = typical.kv_token / float(peaks.kv_read_seconds(1))
    return peaks.at_rates(compute, memory)
