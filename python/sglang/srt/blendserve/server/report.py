"""What the batch service is doing, in numbers."""

from __future__ import annotations

from typing import NamedTuple, get_args

from sglang.srt.blendserve.answering.rate_meter import Rates
from sglang.srt.blendserve.store.objects import BatchStatus

STATUSES: tuple[BatchStatus, ...] = get_args(BatchStatus)


class Report(NamedTuple):
    """The batch service at one moment.

    Attributes:
        batches: number of batches in each status, all statuses.
        requests: requests of open batches: ``completed``, ``failed``, ``in_flight`` and
            ``waiting``.
        slots: requests that may be in the engine at once.
        waiting: open batches that cannot be written down for want of disk.
        rates: over the last minute.
    """

    batches: dict[str, int]
    requests: dict[str, int]
    slots: int
    waiting: int
    rates: Rates
