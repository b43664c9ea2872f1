"""The pool of offline requests: what waits, in which planned order, and what is in flight.

The pool lives beside SGLang's waiting queue and knows nothing of SGLang: a request carries the
engine's own object as ``payload``. It plans over everything that waits, plans again when enough
has arrived or the predictions have drifted, and hands requests out from both ends of the plan.

All decisions depend only on the calls made, never on the clock, so that the ranks of a tensor
parallel group, which see the same calls, hand out the same requests. Only a plan that is made in
the background and may be adopted as soon as it is there (`background.Background`) is not so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.lengths.estimator import LengthEstimator
from sglang.srt.blendserve.lengths.forecast import LengthForecast
from sglang.srt.blendserve.plan.scan_order import KEEP_SHARING, Plan
from sglang.srt.blendserve.plan.scanner import DualScanner, Side
from sglang.srt.blendserve.pool.background import Background
from sglang.srt.blendserve.pool.current_plan import CurrentPlan
from sglang.srt.blendserve.pool.in_flight import InFlight
from sglang.srt.blendserve.pool.planner import Planned, Planner
from sglang.srt.blendserve.pool.pool_request import PoolRequest, Tokens
from sglang.srt.blendserve.pool.request_table import RequestTable
from sglang.srt.blendserve.pool.shared_prefixes import SharedPrefixes
from sglang.srt.blendserve.pool.upcoming_use import UpcomingUse

__all__ = ["SAMPLE", "PoolRequest", "RequestPool", "Tokens"]

SAMPLE = 0.01
"""Share of the requests that run first, to learn output lengths from (paper section 5.1)."""


class RequestPool:
    """Waiting and running offline requests of all jobs, blended in one plan."""

    planner_type: type[Planner] = Planner
    """What makes its plans."""

    def __init__(
        self,
        cost: CostModel,
        kv_slots: int,
        *,
        keep_sharing: float = KEEP_SHARING,
        sample: float = SAMPLE,
        background: Background[Planned] | None = None,
    ) -> None:
        """``kv_slots``: tokens the KV cache holds. ``sample``: share of the requests of unknown
        length that run first. ``background``: where plans are made; None: at once, while the
        caller waits."""
        self.cost = cost
        self.kv_slots = kv_slots
        self._planner = self.planner_type(cost, kv_slots, keep_sharing, sample)
        self._background = background
        self._table = RequestTable()
        self._current = CurrentPlan(self._table, self._planner, background, None)
        self._plans_before = 0
        self.prefixes = SharedPrefixes(self._table.held_otherwise)
        """Which shared prefixes are in use."""

    # --- what there is --------------------------------------------------------------------

    def __len__(self) -> int:
        """Requests that wait: arrived, planned or returned, not running."""
        return len(self._table)

    def __contains__(self, rid: str) -> bool:
        return rid in self._table.by_rid

    @property
    def running(self) -> list[PoolRequest]:
        """Requests in flight, in the order of their admission."""
        return list(self._table.running.values())

    def in_flight(self) -> InFlight:
        """The same as columns."""
        return self._table.in_flight()

    @property
    def running_count(self) -> int:
        """How many requests are in flight."""
        return len(self._table.running)

    @property
    def returned(self) -> list[PoolRequest]:
        """Requests that the engine gave back, served before anything from the plan."""
        return list(self._table.returned)

    @property
    def unplanned(self) -> int:
        """Requests that have arrived since the plan was made."""
        return len(self._table.all) - self._current.requests

    @property
    def plans_made(self) -> int:
        """Orders made since the start, with or without a new prefix tree."""
        return self._plans_before + self._current.orders

    @property
    def plan(self) -> Plan | None:
        """The plan in use; None before the first."""
        return self._current.plan

    @property
    def scanner(self) -> DualScanner:
        """What of the plan still waits."""
        return self._current.scanner

    @property
    def forecast(self) -> LengthForecast | None:
        """How long requests may run; None before the first plan."""
        return self._current.forecast

    @property
    def lengths(self) -> LengthEstimator | None:
        """What has been learned of output lengths; None before the first plan."""
        return None if self._current.made is None else self._current.made.lengths

    @property
    def rest(self) -> RemainingWork:
        """Predicted work of the planned requests that still wait."""
        return self._current.rest

    @property
    def rest_tokens(self) -> float:
        """KV tokens that these are predicted to write, shared prefixes once."""
        return self._current.rest_tokens

    @property
    def upcoming(self) -> UpcomingUse | None:
        """Who still comes through a prefix, of the planned and the returned requests.

        None without a plan. Another object for every tree that is planned over; the same one,
        with another scanner, when only the order is planned again.
        """
        return self._current.upcoming

    def get(self, rid: str) -> PoolRequest | None:
        """The request of this id, waiting or running."""
        return self._table.by_rid.get(rid)

    def runs(self, request: PoolRequest) -> bool:
        """Whether ``request`` is in flight."""
        return request.index in self._table.running

    def request(self, index: int) -> PoolRequest:
        """The request with this place in the pool's arrays."""
        return self._table.all[index]

    def waiting(self) -> Iterator[PoolRequest]:
        """All waiting requests: returned ones first, then by arrival."""
        return self._table.everyone_waiting()

    def select(self, chosen: Callable[[PoolRequest], bool]) -> list[PoolRequest]:
        """The waiting requests that ``chosen`` picks (to abort them)."""
        return [request for request in self.waiting() if chosen(request)]

    # --- planning -------------------------------------------------------------------------

    def plan_if_due(self, *, quiet: bool, idle_seconds: float = 0.0) -> bool:
        """Plan again if it is worth it; say whether there is another order now.

        ``quiet``: nothing arrived lately, so whatever is unplanned may be planned now.
        ``idle_seconds``: how long the engine, having nothing else to do, can wait for a plan that
        is being made in the background. To be called once in each scheduling pass.
        """
        renewed = self._current.renew_if_due(quiet=quiet, idle_seconds=idle_seconds)
        self._follow_tree()
        return renewed

    def make_plan(self) -> None:
        """Plan everything that waits, with the lengths as they are predicted now."""
        self._current.renew()
        self._follow_tree()

    def replan(self) -> None:
        """Order what still waits anew for the lengths as they are predicted now."""
        self._current.renew_order()

    def _follow_tree(self) -> None:
        made = self._current.made
        if made is not None:
            self.prefixes.follow(made.ancestors, self._table.running.values())

    # --- handing out ------------------------------------------------------------------------

    def add(self, request: PoolRequest) -> None:
        """Let ``request`` wait. Raises ValueError if its rid is already in the pool."""
        self._table.add(request)

    def peek(self, side: Side) -> PoolRequest | None:
        """The next request at ``side`` of the plan; None when the plan is used up."""
        index = self.scanner.peek(side)
        return None if index is None else self._table.all[index]

    def peek_returned(self) -> PoolRequest | None:
        """The returned request that is served before anything from the plan."""
        return self._table.returned[0] if self._table.returned else None

    def next_sample(self) -> PoolRequest | None:
        """The next request to learn a length from, which runs before the plan's."""
        index = self._current.next_sample()
        return None if index is None else self._table.all[index]

    def shared_above(self, request: PoolRequest, tokens: int) -> list[int]:
        """Nodes of shared prefixes of a planned request that reach beyond its first ``tokens``."""
        made = self._current.made
        return [] if made is None else made.ancestors.beyond(request.index, tokens)

    def start(self, request: PoolRequest) -> None:
        """``request``, which waits, is handed to the engine."""
        self._leave(request)
        self._table.start(request)
        if not request.generated:
            self._current.started(request.index)
        self.prefixes.enter(request)

    def put_back(self, request: PoolRequest, *, first: bool = True) -> None:
        """The engine returns ``request`` (refused or retracted); it keeps its turn."""
        self.prefixes.leave(request)
        if not request.generated:
            self._current.not_started(request.index)
        self._table.put_back(request, first=first)
        self._current.returns_changed = True

    def finish(self, request: PoolRequest, output_tokens: int) -> None:
        """``request`` has ended by itself with ``output_tokens`` output tokens: a length seen."""
        self._table.finished.append((request.index, output_tokens))
        self._current.finished(request.index, output_tokens)
        self.forget(request)

    def forget(self, request: PoolRequest) -> None:
        """``request`` has left the engine (ended, aborted or failed)."""
        if request.rid not in self:
            return
        if request.index in self._table.running:
            self.prefixes.leave(request)
        else:
            self._leave(request)
        self._table.remove(request)
        request.payload = None
        if not self._table.by_rid:
            self._start_afresh()

    def _leave(self, request: PoolRequest) -> None:
        """``request`` waits no longer."""
        if self._table.waits(request.index):
            self._current.leave(request.index)
        else:
            self._current.returns_changed = True

    def _start_afresh(self) -> None:
        """Everything is done: forget all but what lengths look like here."""
        if self._background is not None:
            self._background.drop()
        self._plans_before = self.plans_made
        prior = self._current.prior()
        self._table = RequestTable()
        self.prefixes = SharedPrefixes(self._table.held_otherwise)
        self._current = CurrentPlan(self._table, self._planner, self._background, prior)
