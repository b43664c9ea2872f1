"""Which device the scheduler runs on, as the cost model sees it."""

from __future__ import annotations

import logging

from sglang.srt.blendserve.planner.device_spec import DeviceSpec, known_devices, measure_cpu

logger = logging.getLogger(__name__)


def this_device(device: str, name: str, ranks: int) -> DeviceSpec:
    """The specification of the device at hand, for ``ranks`` tensor parallel ranks together.

    ``device``: torch's device type. ``name``: a name known to the planner, or ``auto``. A GPU that
    is not in the list is described by its nearest relative, said in the log: the policy needs the
    ratio of compute to bandwidth, which differs little within a family.
    """
    if name != "auto":
        return DeviceSpec.named(name).tensor_parallel(ranks)
    if device == "cpu":
        return measure_cpu()
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
