"""The work of the requests that the engine gave back, which no plan holds any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.lengths.forecast import LengthForecast
from sglang.srt.blendserve.pool.planner import Ancestors
from sglang.srt.blendserve.pool.pool_request import PoolRequest


class WorkGivenBack(NamedTuple):
    """What requests that the engine gave back still take."""

    compute: float
    """Seconds of compute: what they had generated is computed again, too."""
    memory: float
    """Seconds of KV cache reads while they decode."""
    tokens: float
    """KV tokens that they will write, shared prefixes left out."""


NONE = WorkGivenBack(0.0, 0.0, 0.0)


class GivenBack:
    """Sums up the work of the requests that the engine gave back.

    Thousands may wait so where outputs are long and memory is short, and one comes or goes in most
    steps: each is looked at when it comes, and all of them when predictions change.
    """

    def __init__(self, cost: CostModel) -> None:
        self.sum = NONE
        """What all of them take together."""
        self._cost = cost
        self._each: dict[str, WorkGivenBack] = {}

    def renew(
        self, requests: Sequence[PoolRequest], forecast: LengthForecast, ancestors: Ancestors
    ) -> None:
        """Forget all, and take ``requests`` by what ``forecast`` says; those that it knows."""
        self.sum, self._each = NONE, {}
        self.add(requests, forecast, ancestors)

    def add(
        self, requests: Sequence[PoolRequest], forecast: LengthForecast, ancestors: Ancestors
    ) -> None:
        """``requests`` are given back; those that ``forecast`` does not know do not count.

        ``ancestors``: of the same tree; the prefixes that others share count as cached.
        """
        known = [request for request in requests if request.index < len(forecast)]
        if known:
            each = work_given_back(known, forecast, ancestors, self._cost)
            self._each.update(zip((request.rid for request in known), each, strict=True))
            self.sum = WorkGivenBack(*(sum(parts) for parts in zip(self.sum, *each, strict=True)))

    def remove(self, request: PoolRequest) -> None:
        """``request`` does not wait any more."""
        work = self._each.pop(request.rid, None)
        if not self._each:
            self.sum = NONE  # to the last digit
        elif work is not None:
            self.sum = WorkGivenBack(*(a - b for a, b in zip(self.sum, work, strict=True)))


def work_given_back(
    requests: Sequence[PoolRequest],
    forecast: LengthForecast,
    ancestors: Ancestors,
    cost: CostModel,
) -> list[WorkGivenBack]:
    """Return the predicted work of each of ``requests``, all of which ``forecast`` knows.

    Lengths are taken at their mean, as those of requests in flight are.
    """
    index = np.array([request.index for request in requests], dtype=np.int64)
    generated = np.array([request.generated for request in requests], dtype=np.int64)
    prompt = np.array([request.prompt.size for request in requests], dtype=np.int64)
    context = prompt + generated
    left = forecast.remaining(index, generated).mean(axis=1)
    own = context - ancestors.shared(index)
    columns = (
        cost.compute_seconds(context, left, own),
        cost.memory_seconds(context, left),
        own + left,
    )
    return [WorkGivenBack(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]
