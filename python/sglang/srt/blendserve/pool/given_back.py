"""The work of the requests that the engine gave back, which no plan holds any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.lengths.forecast import LengthForecast
from sglang.srt.blendserve.pool.planner import Ancestors
from sglang.srt.blendserve.pool.pool_request import PoolRequest


class WorkGivenBack(NamedTuple):
    """What requests that the engine gave back still take, together."""

    compute: float
    """Seconds of compute: what they had generated is computed again, too."""
    memory: float
    """Seconds of KV cache reads while they decode."""
    tokens: float
    """KV tokens that they will write, shared prefixes left out."""


NONE = WorkGivenBack(0.0, 0.0, 0.0)


def work_given_back(
    returned: Iterable[PoolRequest],
    forecast: LengthForecast,
    ancestors: Ancestors,
    cost: CostModel,
) -> WorkGivenBack:
    """Return the predicted work of ``returned`` requests, those that ``forecast`` knows.

    Lengths are taken at their mean, as those of requests in flight are. ``ancestors``: of the same
    tree; the prefixes that others share count as cached.
    """
    known = [request for request in returned if request.index < len(forecast)]
    if not known:
        return NONE
    index = np.array([request.index for request in known], dtype=np.int64)
    generated = np.array([request.generated for request in known], dtype=np.int64)
    context = generated + np.array([request.prompt.size for request in known], dtype=np.int64)
    left = forecast.remaining(index, generated).mean(axis=1)
    own = context - ancestors.shared(index)
    return WorkGivenBack(
        float(cost.compute_seconds(context, left, own).sum()),
        float(cost.memory_seconds(context, left).sum()),
        float((own + left).sum()),
    )
