"""The plan that a pool goes by, and when it is made anew.

It is made over everything that waits; again when enough has arrived; and only its order when what
has been learned of output lengths moves the remaining work.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sglang.srt.blendserve.planner.background import Background
from sglang.srt.blendserve.planner.length_prior import LengthPrior
from sglang.srt.blendserve.planner.outlook import Outlook
from sglang.srt.blendserve.planner.pacing import RemainingWork
from sglang.srt.blendserve.planner.plan import Plan
from sglang.srt.blendserve.planner.planning import Census, Ordered, Planned, Planner
from sglang.srt.blendserve.planner.roster import Roster
from sglang.srt.blendserve.planner.scanner import DualScanner
from sglang.srt.blendserve.planner.upcoming import UpcomingUse

LEARN_GROWTH = 0.5
LEARN_LEAST = 32
"""Predict anew when so many more have finished, or so many more passes were made."""

GROWTH = 0.25
"""Plan again once this share of the planned requests has newly arrived: the total planning time
then stays proportional to the last plan's."""


class CurrentPlan:
    """A plan over the requests of a roster, kept up with what happens to them."""

    def __init__(
        self,
        roster: Roster,
        planner: Planner,
        background: Background[Planned] | None,
        prior: LengthPrior | None,
    ) -> None:
        """``background``: where plans are made; None: at once, while the caller waits.
        ``prior``: what earlier requests taught about lengths."""
        self.plan: Plan | None = None
        self.scanner = DualScanner(np.zeros(0, dtype=np.int64))
        self.outlook: Outlook | None = None
        self.made: Planned | None = None
        """What the last plan was made of; None before the first."""
        self.orders = 0
        """How often the order was made, with or without a new tree."""
        self.returns_changed = False
        """Set when other requests than before are served before the plan."""
        self._roster, self._planner, self._background = roster, planner, background
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
    def rest(self) -> RemainingWork:
        """Predicted work of those in it that still wait."""
        return RemainingWork(max(self._compute, 0.0), max(self._memory, 0.0))

    @property
    def rest_tokens(self) -> float:
        """KV tokens that these are predicted to write, shared prefixes once."""
        return max(self._tokens, 0.0)

    @property
    def upcoming(self) -> UpcomingUse | None:
        """See `RequestPool.upcoming`."""
        if self.made is None:
            return None
        if self.returns_changed:
            self.made.upcoming.serve_first(r.index for r in self._roster.returned)
            self.returns_changed = False
        return self.made.upcoming

    def prior(self) -> LengthPrior | None:
        """What the lengths seen so far teach about later requests."""
        return self._prior if self.made is None else self.made.lengths.prior()

    # --- making it ------------------------------------------------------------------------

    def renew_if_due(self, *, quiet: bool, idle_seconds: float) -> bool:
        """See `RequestPool.plan_if_due`."""
        self._passes += 1
        if self._background is not None and self._background.busy:
            planned = self._background.poll(idle_seconds)
            return planned is not None and self._adopt(planned)
        unplanned = len(self._roster.all) - self.requests
        if unplanned == 0:
            return self._order_if_due()
        if quiet or len(self.scanner) == 0 or unplanned >= GROWTH * self.requests:
            census = self._census()
            return self._make(lambda: self._planner.plan(census), census)
        return False

    def renew(self) -> None:
        """Plan everything that waits, now."""
        self._adopt(self._planner.plan(self._census()))

    def renew_order(self) -> None:
        """Order what waits anew for the lengths as they are predicted now."""
        if self.made is not None:
            now, census = self._again(self.made)
            self._adopt(self._planner.order(now, census, always=True))

    def _order_if_due(self) -> bool:
        """Predict lengths anew when enough has been seen, and order anew if that matters."""
        finished, passes = self._learn_at
        if self.made is None or (len(self._roster.finished) < finished and self._passes < passes):
            return False
        self._learn_later()
        now, census = self._again(self.made)
        return self._make(lambda: self._planner.order(now, census, always=False), census)

    def _again(self, made: Planned) -> tuple[Planned, Census]:
        """What is needed to order the same requests anew, cut off from what happens meanwhile."""
        return made.copy(), self._roster.census(self.requests, self.requests, self._prior)

    def _census(self) -> Census:
        roster = self._roster
        if not roster.mostly_ended():
            return roster.census(len(roster.all), self.requests, self._prior)
        self._prior = self.prior()
        return roster.census_of_the_living(self.requests, self._prior)

    def _make(self, work: Callable[[], Planned], census: Census) -> bool:
        if self._background is None:
            return self._adopt(work())

        def work_and_report() -> Planned:
            planned = work()
            if planned.order is not None:
                _ = planned.order.plan.density  # here, not while steps wait for a status report
            return planned

        self._background.begin(work_and_report, len(census.requests))
        return False

    def _adopt(self, planned: Planned) -> bool:
        """Go by ``planned`` from now on; say whether its order is another."""
        census, roster = planned.census, self._roster
        number = roster.renumber(census)
        if number is not None:
            self._sample = [number[index] for index in self._sample if index in number]
        self._sample = [*planned.sample, *self._sample]
        # What has happened since the census was taken.
        for index, output_tokens in roster.finished[len(census.finished) :]:
            planned.lengths.observe(index, output_tokens)
            if census.waiting[index]:
                planned.outlook.started(index)
            planned.outlook.finished(index)
        for index in roster.running:
            if census.waiting[index]:
                planned.outlook.started(index)
        self.made, self.outlook = planned, planned.outlook
        self.returns_changed = True
        self._learn_later()
        if planned.order is not None:
            self._follow(planned.order, planned.upcoming)
        return planned.order is not None

    def _follow(self, order: Ordered, upcoming: UpcomingUse) -> None:
        plan, scanner = order.plan, order.scanner
        waiting = self._roster.waiting_mask(self.requests)
        for index in plan.order[~waiting[plan.order]].tolist():
            scanner.discard(index)
        upcoming.follow(scanner)
        self.plan, self.scanner = plan, scanner
        self._compute = float(plan.compute_seconds[waiting].sum())
        self._memory = float(plan.memory_seconds[waiting].sum())
        tokens = plan.computed_tokens + plan.output_tokens
        self._tokens = float(tokens[waiting].sum())
        self._work = plan.compute_seconds.data, plan.memory_seconds.data, tokens.data
        self.orders += 1

    def _learn_later(self) -> None:
        self._learn_at = (
            int(len(self._roster.finished) * (1 + LEARN_GROWTH)) + LEARN_LEAST,
            int(self._passes * (1 + LEARN_GROWTH)) + LEARN_LEAST,
        )

    # --- following it -----------------------------------------------------------------------

    def next_sample(self) -> int | None:
        """The next request to learn a length from, which runs before the others."""
        while self._sample and not self._roster.waits(self._sample[-1]):
            self._sample.pop()
        return self._sample[-1] if self._sample else None

    def leave(self, request: int) -> None:
        """``request``, which waited, does so no longer: it starts, or was aborted."""
        if request not in self.scanner:
            return
        self.scanner.discard(request)
        compute, memory, tokens = self._work
        self._compute -= compute[request]
        self._memory -= memory[request]
        self._tokens -= tokens[request]

    def started(self, request: int) -> None:
        """``request`` runs for the first time."""
        if self.outlook is not None and request < self.requests:
            self.outlook.started(request)

    def not_started(self, request: int) -> None:
        """``request`` was given back before it had generated anything."""
        if self.outlook is not None and request < self.requests:
            self.outlook.started(request, -1)

    def finished(self, request: int, output_tokens: int) -> None:
        """``request`` has ended by itself: a length seen."""
        if self.made is not None and request < self.requests:
            self.made.lengths.observe(request, output_tokens)
            self.made.outlook.finished(request)
