"""The pool of offline requests of one engine, and what it reckons with."""

from __future__ import annotations

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.measured_cost import measured_cost
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.pool.background import Background
from sglang.srt.blendserve.pool.request_pool import RequestPool


def planning_passes(requests: int) -> int:
    """Return how many scheduling passes a plan of so many requests is given.

    100,000 requests take 2 to 5 seconds.
    """
    return 16 + requests // 500


def engine_cost(model_path: str, device: DeviceSpec, kv_dtype_bytes: float) -> CostModel:
    """Return what work costs on ``device`` with the model in the folder ``model_path``, at measured
    rates where there are some of the device.

    ``kv_dtype_bytes``: bytes of an element of the KV cache, 1 where it is in fp8.

    Raises ConfigError if the model's ``config.json`` cannot be read or lacks a field.
    """
    return measured_cost(ModelSpec.from_folder(model_path, kv_dtype_bytes=kv_dtype_bytes), device)


def engine_pool(cost: CostModel, kv_slots: int, ranks: int) -> RequestPool:
    """Return an empty pool that plans beside the steps of an engine.

    ``kv_slots``: tokens that the KV cache holds. ``ranks``: of the engine's tensor parallel group.
    All of them must take the same decisions, so where there are several, a plan is adopted after a
    fixed number of passes and not when it happens to be ready.
    """
    return RequestPool(
        cost,
        kv_slots,
        background=Background(planning_passes if ranks > 1 else None),
    )
