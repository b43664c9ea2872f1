"""The plan that a pool goes by, and when it is made anew.

It is made over everything that waits; again when enough has arrived; and only its order when what
has been learned of output lengths moves the remaining work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.lengths.forecast import LengthForecast
from sglang.srt.blendserve.lengths.prior import LengthPrior
from sglang.srt.blendserve.plan.scan_order import Plan
from sglang.srt.blendserve.plan.scanner import DualScanner, Side
from sglang.srt.blendserve.pool.background import Background
from sglang.srt.blendserve.pool.given_back import GivenBack
from sglang.srt.blendserve.pool.planner import Planned, Planner, PoolSnapshot
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_table import RequestTable
from sglang.srt.blendserve.pool.upcoming_use import UpcomingUse


class CurrentPlan:
    """A plan over the requests of a table, kept up with what happens to them."""

    def __init__(
        self,
        table: RequestTable,
        planner: Planner,
        background: Background[Planned] | None,
        prior: LengthPrior | None = None,
        orders: int = 0,
    ) -> None:
        """``background``: where plans are made; None: at once, while the caller waits.
        ``prior``: what earlier requests taught about lengths. ``orders``: made before."""
        self.plan: Plan | None = None
        """The plan in use; None before the first."""
        self.scanner = DualScanner(np.zeros(0, dtype=np.int64))
        """What of the plan still waits."""
        self.forecast: LengthForecast | None = None
        """How long requests may run; None before the first plan."""
        self.made: Planned | None = None
        """What the last plan was made of; None before the first."""
        self.orders = orders
        """How often the order was made, with or without a new tree."""
        self.beyond = RemainingWork(0.0, 0.0)
        """Predicted work that waits elsewhere for this engine, seconds."""
        self._returns_changed = False
        self._given_back = GivenBack(planner.cost)
        self._leave_out = False
        self._table, self._planner, self._background = table, planner, background
        self._rules = planner.rules
        self._prior = prior
        self._passes = 0
        self._learn_at = (0, 0)
        self._sample: list[int] = []
        self._compute = self._memory = self._tokens = 0.0
        nothing = np.zeros(0).data
        self._work = nothing, nothing, nothing
        """Of each request, for quick look-up one by one: seconds of compute and memory, tokens."""

    @property
    def requests(self) -> int:
        """How many requests, by now waiting or not, the plan was made of."""
        return 0 if self.made is None else self.made.tree.requests

    @property
    def unplanned(self) -> int:
        """Requests that have arrived since the plan was made."""
        return len(self._table.all) - self.requests

    @property
    def rest(self) -> RemainingWork:
        """Predicted work of what waits, planned or given back, and of what is `beyond`, seconds."""
        compute, memory = self.beyond
        again = self._given_back.sum
        return RemainingWork(
            max(self._compute, 0.0) + again.compute + compute,
            max(self._memory, 0.0) + again.memory + memory,
        )

    @property
    def rest_tokens(self) -> float:
        """KV tokens that what waits, planned or given back, is predicted to write; shared prefixes
        once, and of what was given back not at all."""
        return max(self._tokens, 0.0) + self._given_back.sum.tokens

    @property
    def upcoming(self) -> UpcomingUse | None:
        """Who still comes through a prefix, of the planned and the returned requests.

        None without a plan or a cache. Another object for every tree that is planned over; the same
        one, with another scanner, when only the order is planned again.
        """
        if self.made is None:
            return None
        upcoming = self.made.upcoming
        if self._returns_changed and upcoming is not None:
            upcoming.serve_first(r.index for r in self._table.returned)
            self._returns_changed = False
        return upcoming

    def prior(self, besides: Iterable[int] = ()) -> LengthPrior | None:
        """What the lengths seen so far teach about later requests, those of some ``besides``."""
        return self._prior if self.made is None else self.made.lengths.prior(besides)

    # --- making it ------------------------------------------------------------------------

    def renew_if_due(self, *, quiet: bool, idle_seconds: float) -> bool:
        """Plan again if it is worth it; arguments and result as in `RequestPool.plan_if_due`."""
        self._passes += 1
        if self._background is not None and self._background.busy:
            planned = self._background.poll(idle_seconds)
            return planned is not None and self._adopt(planned)
        unplanned = self.unplanned
        anew = self._leave_out and self._table.mostly_ended(self._rules.least_ended)
        if unplanned == 0 and not anew:
            return self._order_if_due()
        if anew or quiet or len(self.scanner) == 0 or unplanned >= self._enough():
            snapshot = self._snapshot()
            return self._make(lambda: self._planner.plan(snapshot), snapshot)
        return False

    def _enough(self) -> float:
        """Arrivals that are worth a plan: a share of what waits, or a fourth of it of all that the
        plan was made of, most of which may have ended."""
        return self._rules.growth * max(len(self.scanner), self.requests / 4)

    def _order_if_due(self) -> bool:
        """Predict lengths anew when enough has been seen, and order anew if that matters."""
        finished, passes = self._learn_at
        if self.made is None or (len(self._table.finished) < finished and self._passes < passes):
            return False
        self._learn_later()
        # Cut off from what happens meanwhile.
        now = self.made.copy()
        snapshot = self._table.snapshot(self.requests, self.requests, self._prior)
        return self._make(lambda: self._planner.order(now, snapshot), snapshot)

    def _snapshot(self) -> PoolSnapshot:
        table = self._table
        if not (self._leave_out or table.mostly_ended(self._rules.least_ended)):
            return table.snapshot(len(table.all), self.requests, self._prior)
        self._leave_out = False
        # Those that run on are the long ones: beside none that have ended, they would be taken for
        # the rule.
        kept = table.newest_ended(self._rules.kept_ended)
        for index in kept:  # its prompt may lie in a file of a job that has ended
            request = table.all[index]
            request.prompt, request.prompt_start = request.prompt.copy(), -1
        self._prior = self.prior(besides=kept)
        return table.snapshot_without_ended(self.requests, self._prior, kept)

    def _make(self, work: Callable[[], Planned], snapshot: PoolSnapshot) -> bool:
        if self._background is None:
            return self._adopt(work())
        self._background.begin(work, len(snapshot.requests))
        return False

    def _adopt(self, planned: Planned) -> bool:
        """Go by ``planned`` from now on; say whether its order is another."""
        snapshot, table = planned.snapshot, self._table
        number = table.renumber(snapshot)
        if number is not None:
            self._sample = [number[index] for index in self._sample if index in number]
        self._sample = [*planned.sample, *self._sample]
        # What has happened since the snapshot was taken, to requests that are in it: later ones may
        # have run as well, where they did not wait for a plan.
        known, begun = len(snapshot.requests), {*snapshot.begun.tolist()}
        for index, output_tokens in table.finished[len(snapshot.finished) :]:
            if index < known:
                planned.lengths.observe(index, output_tokens)
                if index not in begun:
                    planned.forecast.started(index)
                planned.forecast.finished(index)
        for request in table.begun():
            if request.index < known and request.index not in begun:
                planned.forecast.started(request.index)
        for request in table.returned:
            if not request.generated and request.index in begun:
                planned.forecast.started(request.index, -1)
        self.made, self.forecast = planned, planned.forecast
        self._returns_changed = True
        if planned.ancestors is not None:
            self._given_back.renew(table.returned, planned.forecast, planned.ancestors)
        self._learn_later()
        if planned.scan is None:
            return False
        self._follow(planned.scan.plan, planned.scan.scanner, planned.upcoming)
        return True

    def _follow(self, plan: Plan, scanner: DualScanner, upcoming: UpcomingUse | None) -> None:
        waiting = self._table.waiting_mask(self.requests)
        for index in plan.order[~waiting[plan.order]].tolist():
            scanner.discard(index)
        if upcoming is not None:
            upcoming.follow(scanner)
        self.plan, self.scanner = plan, scanner
        self._compute = float(plan.compute_seconds[waiting].sum())
        self._memory = float(plan.memory_seconds[waiting].sum())
        tokens = plan.computed_tokens + plan.output_tokens
        self._tokens = float(tokens[waiting].sum())
        self._work = plan.compute_seconds.data, plan.memory_seconds.data, tokens.data
        self.orders += 1

    def _learn_later(self) -> None:
        rules = self._rules
        self._learn_at = (
            int(len(self._table.finished) * (1 + rules.learn_growth)) + rules.learn_least,
            int(self._passes * (1 + rules.learn_growth)) + rules.learn_least,
        )

    # --- following it -----------------------------------------------------------------------

    def peek(self, side: Side) -> PoolRequest | None:
        """The next request at ``side`` of the plan; None when the plan is used up."""
        index = self.scanner.peek(side)
        return None if index is None else self._table.all[index]

    def next_sample(self) -> PoolRequest | None:
        """The next request to learn a length from, which runs before the plan's; None: no more."""
        while self._sample and not self._table.waits(self._sample[-1]):
            self._sample.pop()
        return self._table.all[self._sample[-1]] if self._sample else None

    def take_samples(self) -> list[PoolRequest]:
        """Return all that `next_sample` would, in its order; the caller runs them."""
        taken, self._sample = self._sample, []
        return [self._table.all[index] for index in reversed(taken) if self._table.waits(index)]

    def work_of(self, request: int) -> RemainingWork:
        """Predicted work of a request that waits, seconds; none of one that is not planned."""
        if request not in self.scanner:
            return RemainingWork(0.0, 0.0)
        compute, memory, _ = self._work
        return RemainingWork(compute[request], memory[request])

    def tokens_of(self, request: int) -> float:
        """KV tokens that a request that waits is predicted to write, shared prefixes once; 0 of one
        that is not planned."""
        return self._work[2][request] if request in self.scanner else 0.0

    def work_of_all(self, requests: NDArray[np.int64]) -> RemainingWork:
        """Predicted work of ``requests`` (m,) that wait and are planned, seconds."""
        if self.plan is None:
            return RemainingWork(0.0, 0.0)
        compute, memory = self.plan.compute_seconds, self.plan.memory_seconds
        return RemainingWork(float(compute[requests].sum()), float(memory[requests].sum()))

    def leave_ended_out(self) -> None:
        """Make the next plan without what has ended; at once where most has."""
        self._leave_out = True

    def given_back(self, request: PoolRequest) -> None:
        """The engine returned ``request``, which is served before the plan."""
        self._returns_changed = True
        made = self.made
        if made is not None and made.ancestors is not None:
            self._given_back.add([request], made.forecast, made.ancestors)

    def taken_again(self, request: PoolRequest) -> None:
        """``request``, which the engine had returned, starts again or has left."""
        self._returns_changed = True
        self._given_back.remove(request)

    def leave(self, request: int) -> None:
        """``request``, which waited, does so no longer: it starts, or was aborted."""
        if not self.scanner.drop(request):
            return
        compute, memory, tokens = self._work
        self._compute -= compute[request]
        self._memory -= memory[request]
        self._tokens -= tokens[request]

    def started(self, request: int) -> None:
        """``request`` runs for the first time."""
        if self.forecast is not None and request < self.requests:
            self.forecast.started(request)

    def not_started(self, request: int) -> None:
        """``request`` was given back before it had generated anything."""
        if self.forecast is not None and request < self.requests:
            self.forecast.started(request, -1)

    def finished(self, request: int, output_tokens: int) -> None:
        """``request`` has ended by itself: a length seen."""
        if self.made is not None and request < self.requests:
            self.made.lengths.observe(request, output_tokens)
            self.made.forecast.finished(request)
