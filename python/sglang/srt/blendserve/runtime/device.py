"""Which device the scheduler runs on, as the cost model sees it."""

from __future__ import annotations

import logging
from dataclasses import replace

from sglang.srt.blendserve.cost.device_spec import DeviceSpec, known_devices, measure_cpu
from sglang.srt.blendserve.runtime.ranks import RankGroup

logger = logging.getLogger(__name__)


def this_device(
    device: str, name: str, ranks: int, together: RankGroup | None = None
) -> DeviceSpec:
    """Return the specification of the device at hand, for ``ranks`` tensor parallel ranks together.

    ``together``: these ranks, if each of them is asking. They must take the same decisions in every
    step, so where the device is measured they all take what the first measured.

    ``device``: torch's device type. ``name``: a name known to the cost model, or ``auto``. A GPU
    that is not in the list is described by its nearest relative, said in the log: the policy needs
    the ratio of compute to bandwidth, which differs little within a family.

    Raises ValueError for a ``name`` that is not known.
    """
    if name != "auto":
        return DeviceSpec.named(name).tensor_parallel(ranks)
    if device == "cpu":
        return _measured(together or RankGroup())
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


def _measured(together: RankGroup) -> DeviceSpec:
    measured = measure_cpu()
    peak_flops, bandwidth = together.of_first(measured.peak_flops, measured.bandwidth)
    return replace(measured, peak_flops=peak_flops, bandwidth=bandwidth)
