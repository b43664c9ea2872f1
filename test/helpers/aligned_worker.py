"""The simulation's worker where SGLang cuts prompts to whole tiles of 512 tokens.

Under deterministic inference it does so for the kernels of FlashInfer.
"""

from __future__ import annotations

import sys
from typing import Any

from sglang.srt.blendserve.simulator import full_worker

TILE = 512


def _in_tiles(scheduler: Any) -> None:
    scheduler.truncation_align_size = TILE


if __name__ == "__main__":
    from sglang.srt.managers.scheduler import Scheduler

    Scheduler.init_deterministic_inference_config = _in_tiles
    sys.exit(full_worker.main())
