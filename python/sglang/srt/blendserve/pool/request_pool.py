"""The pool of offline requests: what waits, in which planned order, and what is in flight.

The pool lives beside SGLang's waiting queue and knows nothing of SGLang: a request carries the
engine's own object as ``payload``. It plans over everything that waits, plans again when enough
has arrived or the predictions have drifted, and hands requests out from both sides of the plan.

All decisions depend only on the calls made, never on the clock, so that the ranks of a tensor
parallel group, which see the same calls, hand out the same requests. Only a plan that is made in
the background and may be adopted as soon as it is there (`background.Background`) is not so.
"""

from __future__ import annotations

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.lengths.prior import LengthPrior
from sglang.srt.blendserve.pool.background import Background
from sglang.srt.blendserve.pool.current_plan import CurrentPlan
from sglang.srt.blendserve.pool.patience import Patience
from sglang.srt.blendserve.pool.planner import Planned, Planner
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_table import RequestTable
from sglang.srt.blendserve.pool.shared_prefixes import SharedPrefixes


class RequestPool:
    """Waiting and running offline requests of all jobs, blended in one plan.

    A request's life: `add`, `start`, perhaps `put_back` and `start` again, then `finish` or
    `forget`. What there is to know is asked of the parts, which are other objects after the pool
    has run empty: do not keep them.
    """

    def __init__(
        self,
        cost: CostModel,
        kv_slots: int,
        *,
        rules: PlanningRules | None = None,
        background: Background[Planned] | None = None,
        has_cache: bool = True,
    ) -> None:
        """``kv_slots``: tokens the KV cache holds. ``rules``: when and how plans are made.
        ``background``: where plans are made; None: at once, while the caller waits.
        ``has_cache``: whether the requests run here. Without, ``prefixes`` and ``patience`` know
        nothing, and `CurrentPlan.upcoming` is None."""
        self.cost = cost
        self.kv_slots = kv_slots
        self._rules = rules or PlanningRules()
        self._planner = Planner(cost, kv_slots, self._rules, has_cache)
        self._background = background
        self._has_cache = has_cache
        self.table = RequestTable()
        """Who is in the pool, and in which state."""
        self.current = CurrentPlan(self.table, self._planner, background)
        """The plan in use, and what of it still waits."""
        self.prefixes = SharedPrefixes(self.table.held_otherwise)
        """Which shared prefixes are in use."""
        self.patience = self._new_patience()
        """Who has been overtaken for so long that it goes before the plan."""

    def __len__(self) -> int:
        """Requests that wait: arrived, planned or returned, not running."""
        return len(self.table)

    def plan_if_due(self, *, quiet: bool, idle_seconds: float = 0.0) -> bool:
        """Plan again if it is worth it; say whether there is another order now.

        ``quiet``: nothing arrived lately, so whatever is unplanned may be planned now.
        ``idle_seconds``: how long the engine, having nothing else to do, can wait for a plan that
        is being made in the background. To be called once in each scheduling pass.
        """
        renewed = self.current.renew_if_due(quiet=quiet, idle_seconds=idle_seconds)
        made = self.current.made
        if made is not None and made.ancestors is not None:
            self.prefixes.follow(made.ancestors, self.table.running.values())
        if renewed and self._has_cache:
            self.patience.planned(self.table.everyone_waiting())
        return renewed

    @property
    def planning(self) -> bool:
        """Whether a plan is being made in the background."""
        return self._background is not None and self._background.busy

    # --- a request's life -------------------------------------------------------------------

    def add(self, request: PoolRequest) -> None:
        """Let ``request`` wait. Raises ValueError if its rid is already in the pool."""
        self.table.add(request)
        if self._has_cache:
            self.patience.arrived(request)

    def start(self, request: PoolRequest) -> None:
        """``request``, which waits, is handed to the engine."""
        self._leave(request)
        self.table.start(request)
        self.patience.started(request)
        if not request.generated:
            self.current.started(request.index)
        self.prefixes.enter(request)

    def put_back(self, request: PoolRequest) -> None:
        """The engine returns ``request`` (refused or retracted); it keeps its turn."""
        self.prefixes.leave(request)
        if not request.generated:
            self.current.not_started(request.index)
        self.table.put_back(request)
        self.patience.put_back(request)
        self.current.given_back(request)

    def finish(self, request: PoolRequest, output_tokens: int) -> None:
        """``request`` has ended by itself with ``output_tokens`` output tokens: a length seen."""
        self.table.finished.append((request.index, output_tokens))
        self.current.finished(request.index, output_tokens)
        self.forget(request)

    def forget(self, request: PoolRequest) -> None:
        """``request`` has left the engine (ended, aborted or failed)."""
        if request.rid not in self.table.by_rid:
            return
        if request.index in self.table.running:
            self.prefixes.leave(request)
        else:
            self._leave(request)
        self.table.remove(request)
        self.patience.ended(request)
        request.payload = None
        if not self.table.by_rid:
            self._start_afresh(self.current.prior())

    def waits(self, request: PoolRequest) -> bool:
        """Whether ``request`` is in the pool and was never handed out."""
        known = self.table.by_rid.get(request.rid) is request
        return known and self.table.waits(request.index)

    def requests_of(self, job: str) -> list[PoolRequest]:
        """Return the requests of a job that have not ended."""
        return [request for request in self.table.by_rid.values() if request.job == job]

    def end_job(self, job: str) -> None:
        """Forget all requests of a job; by the next plan those too that have ended: what they are
        made of may be a file of the job."""
        for request in self.requests_of(job):
            self.forget(request)
        self.patience.forget_ended()
        self.current.leave_ended_out()

    def abandon(self) -> None:
        """Forget all requests, and what was learned of lengths: a fault may lie in it."""
        self._start_afresh(None)

    def _leave(self, request: PoolRequest) -> None:
        """``request`` waits no longer."""
        if self.table.waits(request.index):
            self.current.leave(request.index)
        else:
            self.current.taken_again(request)

    def _start_afresh(self, prior: LengthPrior | None) -> None:
        """Forget all but ``prior``, what lengths look like here."""
        if self._background is not None:
            self._background.drop()
        orders = self.current.orders
        self.table = RequestTable()
        self.prefixes = SharedPrefixes(self.table.held_otherwise)
        self.current = CurrentPlan(self.table, self._planner, self._background, prior, orders)
        self.patience = self._new_patience()

    def _new_patience(self) -> Patience:
        rules = self._rules
        return Patience(self.waits, turns=rules.turns, least=rules.least_explained)
