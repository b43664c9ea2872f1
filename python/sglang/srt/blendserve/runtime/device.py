"""Which device the scheduler runs on, as the cost model sees it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from sglang.srt.blendserve.cost.device_spec import DeviceSpec, known_devices, measure_cpu

logger = logging.getLogger(__name__)


def this_device(device: str, name: str, ranks: int, group: Any = None) -> DeviceSpec:
    """The specification of the device at hand, for ``ranks`` tensor parallel ranks together.

    ``group``: the process group of these ranks, if each of them is asking. They must take the same
    decisions in every step, so where the device is measured they all take what the first measured.

    ``device``: torch's device type. ``name``: a name known to the planner, or ``auto``. A GPU that
    is not in the list is described by its nearest relative, said in the log: the policy needs the
    ratio of compute to bandwidth, which differs little within a family.
    """
    if name != "auto":
        return DeviceSpec.named(name).tensor_parallel(ranks)
    if device == "cpu":
        return measure_cpu() if group is None else _as_first_rank(measure_cpu(), group)
    import torch

    actual = torch.cuda.get_device_name()
    for known in known_devices():
        if known.split("-")[0].lower() in actual.lower():
            return DeviceSpec.named(known).tensor_parallel(ranks)
    logger.warning(
        "BlendServe does not know the GPU %r and uses the numbers of an H100; give the nearest of "
        "%s with --blendserve-device.",
        actual,
        ", ".join(known_devices()),
    )
    return DeviceSpec.named("H100").tensor_parallel(ranks)


def _as_first_rank(measured: DeviceSpec, group: Any) -> DeviceSpec:
    import torch

    if torch.distributed.get_world_size(group) == 1:
        return measured
    rates = torch.tensor([measured.peak_flops, measured.bandwidth], dtype=torch.float64)
    first = torch.distributed.get_global_rank(group, 0)
    torch.distributed.broadcast(rates, src=first, group=group)
    peak_flops, bandwidth = rates.tolist()
    return replace(measured, peak_flops=peak_flops, bandwidth=bandwidth)
