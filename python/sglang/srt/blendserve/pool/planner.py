"""One plan of a pool, made from a snapshot of it: a pure function, so that a thread may run it.

The snapshot is taken, and what comes of it is adopted, by `current_plan`; the pool goes on handing
out requests meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.lengths.estimator import LengthEstimator
from sglang.srt.blendserve.lengths.first_wave import sample_wave
from sglang.srt.blendserve.lengths.forecast import LengthForecast
from sglang.srt.blendserve.lengths.prior import LengthPrior
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.scan_order import Plan, plan_tree
from sglang.srt.blendserve.plan.scanner import DualScanner
from sglang.srt.blendserve.pool.planning_rules import PlanningRules
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.upcoming_use import UpcomingUse

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_prompt, _namespace, _job = attrgetter("prompt"), attrgetter("namespace"), attrgetter("job")
_max_tokens, _known_length = attrgetter("max_tokens"), attrgetter("known_length")
_prompt_start = attrgetter("prompt_start")


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool at one moment. Requests are numbered by their place in ``requests``."""

    requests: list[PoolRequest]
    """(n,) requests that wait, run or, unless they are left out, have ended."""
    arrived: int
    """Requests of the pool; later ones are not in this snapshot."""
    waiting: Bools
    """(n,) which of the requests are to be planned."""
    begun: Ints
    """(r,) numbers of the requests in flight, and of those given back with tokens generated."""
    generated: Ints
    """(r,) output tokens so far of each of them."""
    finished: list[tuple[int, int]]
    """Requests that have ended by themselves: number and output tokens of each."""
    prior: LengthPrior | None
    """What requests that are no longer in the pool taught about lengths."""
    planned: int
    """The first so many were planned before, and a sample of them drawn."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What was made of a snapshot."""

    snapshot: PoolSnapshot
    tree: PrefixTree
    upcoming: UpcomingUse | None
    """The upcoming uses of prefixes; they follow no scan yet. None where there is no cache."""
    ancestors: Ancestors | None
    """None where there is no cache."""
    lengths: LengthEstimator
    forecast: LengthForecast
    estimate: Floats
    """(n,) predicted output lengths that the order is made for."""
    scan: PlannedScan | None
    """What waited, in its order; None: the order in use is still good."""
    sample: list[int]
    """Requests to learn lengths from, the first to run at the end."""

    def copy(self) -> Planned:
        """Return a copy that learns about lengths on its own; all else is shared."""
        lengths = self.lengths.copy()
        return replace(self, lengths=lengths, forecast=self.forecast.copy(lengths))


@dataclass(frozen=True, slots=True)
class PlannedScan:
    """A scan of what waited at the snapshot."""

    plan: Plan
    scanner: DualScanner
    """A scanner over the plan that has handed nothing out yet."""


@dataclass(frozen=True, slots=True)
class Ancestors:
    """The inner nodes above each request, for quick look-up one by one."""

    leaf_parent: list[int]
    parent: list[int]
    depth: list[int]
    paths: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """What `above` has found, by the lowest node."""

    @classmethod
    def of(cls, tree: PrefixTree) -> Ancestors:
        """Return the ancestors in ``tree``, which holds all of its requests."""
        leaf_parent = np.zeros(tree.requests, dtype=np.int64)
        leaf_parent[tree.leaf_requests] = tree.parent[tree.leaf_nodes]
        return cls(leaf_parent.tolist(), tree.parent.tolist(), tree.depth.tolist())

    def above(self, request: int) -> list[tuple[int, int]]:
        """All nodes above ``request``, deepest first, each with its segment's length, tokens."""
        if request >= len(self.leaf_parent):
            return []
        lowest = self.leaf_parent[request]
        found = self.paths.get(lowest)
        if found is None:
            node, found = lowest, []
            while node:
                parent = self.parent[node]
                found.append((node, self.depth[node] - self.depth[parent]))
                node = parent
            self.paths[lowest] = found
        return found

    def shared(self, requests: Ints) -> Ints:
        """(m,) tokens of the longest prefix that each of ``requests`` (m,) shares with others."""
        parents = [self.leaf_parent[request] for request in requests.tolist()]
        return np.array([self.depth[parent] for parent in parents], dtype=np.int64)

    def beyond(self, request: int, tokens: int) -> list[int]:
        """Nodes of shared prefixes of ``request`` that reach beyond its first ``tokens``."""
        if request >= len(self.leaf_parent):
            return []
        node, nodes = self.leaf_parent[request], []
        while self.depth[node] > tokens:
            nodes.append(node)
            node = self.parent[node]
        return nodes


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes plans by one set of rules."""

    cost: CostModel
    kv_slots: int
    rules: PlanningRules
    has_cache: bool = True
    """Whether the requests run here, so that somebody asks which prefixes are in use."""

    def plan(self, snapshot: PoolSnapshot) -> Planned:
        """Plan what waits, from its prompts."""
        requests = snapshot.requests
        prompts = [*map(_prompt, requests)]
        namespaces = [*map(_namespace, requests)]
        tree = PrefixTree.build(
            prompts,
            _numbered(namespaces),
            np.fromiter(map(_prompt_start, requests), np.int64, len(requests)),
        )
        max_tokens = np.fromiter(map(_max_tokens, requests), np.int64, len(requests))
        known = np.fromiter(map(_known_length, requests), np.bool_, len(requests))
        lengths = LengthEstimator(
            prompt_tokens=np.fromiter(map(len, prompts), np.int64, len(requests)),
            max_tokens=max_tokens,
            known=known,
            tree=tree,
            job=_numbered([*map(_job, requests)]),
            prior=snapshot.prior,
        )
        forecast = LengthForecast(lengths, max_tokens, known)
        for index in snapshot.begun.tolist():
            forecast.started(index)
        for index, output_tokens in snapshot.finished:
            lengths.observe(index, output_tokens)
            forecast.started(index)
            forecast.finished(index)
        estimate = forecast.renew(snapshot.begun, snapshot.generated)
        return Planned(
            snapshot=snapshot,
            tree=tree,
            upcoming=UpcomingUse(tree, prompts, namespaces) if self.has_cache else None,
            ancestors=Ancestors.of(tree) if self.has_cache else None,
            lengths=lengths,
            forecast=forecast,
            estimate=estimate,
            scan=self._scan(tree, snapshot.waiting, lengths, estimate),
            sample=self._draw_sample(tree, snapshot, known),
        )

    def order(self, now: Planned, snapshot: PoolSnapshot) -> Planned:
        """Predict lengths anew, and order what waits if that matters.

        ``now``: a copy that nobody else uses; it learns. ``snapshot``: of the same requests.
        """
        estimate = now.forecast.renew(snapshot.begun, snapshot.generated)
        drift = _drift(snapshot, now.lengths.prompt_tokens, now.estimate, estimate)
        if not drift > self.rules.drift:
            return replace(now, snapshot=snapshot, scan=None, sample=[])
        scan = self._scan(now.tree, snapshot.waiting, now.lengths, estimate)
        return replace(now, snapshot=snapshot, estimate=estimate, scan=scan, sample=[])

    def _scan(
        self, tree: PrefixTree, waiting: Bools, lengths: LengthEstimator, estimate: Floats
    ) -> PlannedScan:
        """A scan of the ``waiting`` (n,) requests of ``tree``, by their ``estimate`` (n,)."""
        plan = plan_tree(
            tree.restricted(waiting),
            estimate,
            self.cost,
            kv_slots=self.kv_slots,
            kv_reads=lengths.kv_reads(estimate),
        )
        order = np.sort(plan.order) if self.rules.arrival_order else plan.order
        return PlannedScan(plan, DualScanner(order))

    def _draw_sample(self, tree: PrefixTree, snapshot: PoolSnapshot, known: Bools) -> list[int]:
        """Which of the requests that arrived since the last sample are to run first."""
        new = snapshot.waiting.copy()
        new[: snapshot.planned] = False
        if new.sum() * self.rules.sample < self.rules.least_sample:
            return []
        chosen = sample_wave(tree.restricted(new), known, self.rules.sample)
        return [int(request) for request in chosen[::-1]]


def _drift(snapshot: PoolSnapshot, prompt_tokens: Ints, then: Floats, now: Floats) -> float:
    """Change of the predicted KV reads of what waits, as a share; signs do not cancel."""
    rest = snapshot.waiting
    prompt = prompt_tokens[rest]
    before, after = then[rest], now[rest]
    before, after = before * (prompt + before / 2), after * (prompt + after / 2)
    total = float(before.sum())
    return float(np.abs(after - before).sum()) / total if total else 0.0


def _numbered(names: list[str]) -> Ints:
    """(n,) the names as numbers, equal for equal names."""
    if len({*names}) < 2:
        return np.zeros(len(names), dtype=np.int64)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.fromiter(map(numbers.__getitem__, names), np.int64, len(names))
