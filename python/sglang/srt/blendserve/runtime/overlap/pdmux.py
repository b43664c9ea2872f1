"""SGLang's PD multiplexing: its start repaired, and the flags that overlapped execution needs.

``--enable-pdmux`` gives the model runner what two concurrent forwards need: an attention backend
and CUDA graphs per stream group for decode, one more for prefill, and a second tensor parallel
group. As released, 0.5.17 cannot start with it: ``multiplex/multiplexing_mixin.py`` reads
``self.gpu_id`` and ``self.tp_size``, which the scheduler keeps in ``self.ps`` (right in 0.5.23).
There the plugin sets both attributes, for stock policies too, and says so in the log.

With ``--blendserve-overlap`` the loop is ours (`runtime.overlap.overlap_loop`); stock policies keep
that of SGLang.
"""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.compatibility import UnsupportedCombination
from sglang.srt.blendserve.runtime.overlap.lanes import group_number
from sglang.srt.blendserve.settings import Settings

logger = logging.getLogger(__name__)


def register_repair() -> None:
    """Hook the repair into SGLang, if it needs it; called by the plugin in every process."""
    if not seams.PDMUX_LACKS:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.multiplex.multiplexing_mixin.SchedulerMultiplexMixin.init_pdmux",
        repair,
        HookType.BEFORE,
    )


def repair(scheduler: Any) -> None:
    """Before SGLang's ``init_pdmux``: give the scheduler the attributes it reads there."""
    missing = [name for name in seams.PDMUX_LACKS if not hasattr(scheduler, name)]
    if not missing:
        return
    for name in missing:
        setattr(scheduler, name, getattr(scheduler.ps, name))
    logger.warning(
        "SGLang 0.5.17 as released cannot start PD multiplexing: it reads scheduler.%s, kept in "
        "scheduler.ps. BlendServe has set it; this is not stock SGLang.",
        " and scheduler.".join(missing),
    )


def flags(given: Any, settings: Settings) -> dict[str, Any]:
    """Return the fields of ``ServerArgs`` that ``--blendserve-overlap`` needs.

    Args:
        given: the fields as they were given, under their names.
        settings: of the policy.

    Raises:
        UnsupportedCombination: a field was given that contradicts it.
    """
    if settings.overlap == "off":
        return {}
    chunk = given.chunked_prefill_size
    refusals = (
        (
            chunk is not None and chunk > 0,
            f"--chunked-prefill-size {chunk}",
            "SGLang starts PD multiplexing without it only; the chunks of the prefill lane are "
            "--blendserve-overlap-chunk tokens long",
        ),
        (
            given.enable_mixed_chunk or settings.mixed_chunk == "on",
            "--enable-mixed-chunk (--blendserve-mixed-chunk on)",
            "prefill and decode then share one forward and nothing is left to run beside it",
        ),
        (
            given.pdmux_config_path is not None,
            "--pdmux-config-path",
            "the divisions of the SMs come from --blendserve-overlap-sm",
        ),
        (
            given.disaggregation_mode != "null",
            "--disaggregation-mode",
            "prefill and decode then run on different machines",
        ),
    )
    for refused, flag, reason in refusals:
        if refused:
            raise UnsupportedCombination(
                f"--blendserve-overlap {settings.overlap} does not work with {flag}: {reason}. "
                f"Leave one of them out."
            )
    return {
        "enable_pdmux": True,
        "chunked_prefill_size": -1,
        # Its loop runs one batch behind; two lanes need the results of each when it ends.
        "disable_overlap_schedule": True,
        "sm_group_num": group_number(settings.overlap_sm),
    }
